from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsehub.delta import Delta, ParameterDelta
from sparsehub.errors import (
    DeltaError,
    FormatError,
    ManifestError,
    UsageError,
)
from sparsehub.files import TEMPORARY_PREFIX, new_folder
from sparsehub.package import Manifest, Package, finalize_package, read_package, rename_package, write_package, writer
from sparsehub.package.validation import PNG_SIGNATURE

GOLDEN = Path(__file__).parents[1] / "golden" / "package"


def write(folder: Path, package: Package, **changes: Any) -> None:
    parts = {
        "draft": package.manifest,
        "delta": package.delta,
        "head": package.head,
    }
    write_package(folder, **{**parts, **changes})


def finalize(folder: Path, package: Package, beside: dict[str, bytes]) -> Manifest:
    """Make a package of a folder that was filled by somebody else."""
    with new_folder(folder) as temporary:
        writer.write_tensors(temporary, package.manifest, package.delta, package.head)
        for name, data in beside.items():
            (temporary / name).write_bytes(data)
        return finalize_package(temporary, package.manifest)


def other_values(golden: Package) -> Delta:
    part = ParameterDelta((6,), torch.tensor([1, 2]), torch.ones(2))
    return dataclasses.replace(golden.delta, parameters={**golden.delta.parameters, "norm.bias": part})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (lambda g: {"delta": other_values(g)}, FormatError),
        (lambda g: {"delta": dataclasses.replace(g.delta, value_kind="set")}, ManifestError),
        (lambda g: {"delta": dataclasses.replace(g.delta, value_dtype="float32")}, ManifestError),
        (lambda g: {"delta": dataclasses.replace(g.delta, parameters={})}, DeltaError),
        (lambda g: {"head": {"w": torch.tensor([float("nan")])}}, FormatError),
        (lambda g: {"draft": dataclasses.replace(g.manifest, name="../up")}, ManifestError),
        (lambda g: {"draft": dataclasses.replace(g.manifest, metrics={"t": {"loss": float("nan")}})}, ManifestError),
    ],
)
def test_what_could_not_be_read_back_is_never_written(
    golden: Package, tmp_path: Path, changes: Callable[[Package], dict[str, Any]], error: type[FormatError]
) -> None:
    with pytest.raises(error):
        write(tmp_path / "new", golden, **changes(golden))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("..a.png", ManifestError),
        ("a b.png", ManifestError),
        (".hidden", ManifestError),
        ("evil.py", ManifestError),
        ("model.sig", ManifestError),
        ("sparsehub.json", ManifestError),
        ("delta.safetensors", FormatError),
        ("head.safetensors", FormatError),
        ("a.png", FormatError),
    ],
)
def test_a_folder_with_what_no_reader_accepts_is_not_finalized(
    golden: Package, tmp_path: Path, name: str, error: type[FormatError]
) -> None:
    with pytest.raises(error):
        finalize(tmp_path / "new", golden, {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_names_a_file_elsewhere_is_not_written(golden: Package, tmp_path: Path) -> None:
    files = {**golden.manifest.files, "../a.png": golden.manifest.files["density.png"]}
    with pytest.raises(ManifestError, match="may not hold"):
        writer.write_manifest(tmp_path, dataclasses.replace(golden.manifest, files=files))
    assert list(tmp_path.iterdir()) == []


def test_a_picture_beside_the_tensors_is_part_of_the_package(golden: Package, tmp_path: Path) -> None:
    manifest = finalize(tmp_path / "new", golden, {"a.png": PNG_SIGNATURE})
    assert manifest.files["a.png"].size == len(PNG_SIGNATURE)
    assert read_package(tmp_path / "new").attachments["a.png"] == PNG_SIGNATURE


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_after_a_failure(
    golden: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(_: Path) -> Manifest:
        raise error

    monkeypatch.setattr(writer, "validate_package", fail)
    with pytest.raises(type(error)):
        write(tmp_path / "new", golden)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_never_overwritten(folder: Path, golden: Package) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="exists already"):
        write(folder, golden)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Four children write the same package; each is killed at another moment, the last one never.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from sparsehub.package import read_package, write_package, writer

sys.modules["matplotlib"] = None  # drawing pictures takes most of the time and is none of the moments

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def second_write(path, data, write=Path.write_bytes, seen=[]):
    seen.append(path)
    return die() if len(seen) == 2 else write(path, data)

moments = {
    "writing": (Path, "write_bytes", second_write),
    "validating": (writer, "validate_package", die),
    "naming": (Path, "rename", die),
    "never": None,
}
torch.set_num_threads(1)
package = read_package(Path(sys.argv[1]))
for name, moment in moments.items():
    child = os.fork()
    if not child:
        if moment:
            setattr(*moment)
        write_package(Path(sys.argv[2]) / name, package.manifest, package.delta, package.head)
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_kill_in_the_middle_leaves_no_package_under_its_name(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(GOLDEN), str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    killed = -signal.SIGKILL
    expected = f"writing {killed}\nvalidating {killed}\nnaming {killed}\nnever 0\n"
    assert (result.stdout, result.returncode) == (expected, 0), result.stderr
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in names if not name.startswith(TEMPORARY_PREFIX)] == ["never"]
    assert len(names) == 4
    read_package(tmp_path / "never")


def test_a_renamed_package_is_another_digest_of_the_same_files(golden: Package) -> None:
    renamed = rename_package(golden.manifest, name="other", version="2")
    assert (renamed.name, renamed.version, renamed.files) == ("other", "2", golden.manifest.files)
    assert renamed.digest != golden.digest
    assert rename_package(golden.manifest) == golden.manifest
    with pytest.raises(ManifestError, match="not a task name"):
        rename_package(golden.manifest, name="../up")
