from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsehub.errors import (
    FormatError,
    IntegrityError,
    ManifestError,
    TrustError,
)
from sparsehub.files import canonical_json, sha256_file
from sparsehub.package import Package, read_manifest, read_package, validation
from sparsehub.package.signing import read_signature
from sparsehub.package.validation import PNG_SIGNATURE
from sparsehub.tensorfile import tensor_bytes
from tests.support.packages import write_bare_package

GOLDEN = Path(__file__).parents[1] / "golden" / "package"
Change = Callable[[Path], object]


def write(folder: Path, package: Package, **changes: Any) -> None:
    parts = {
        "draft": package.manifest,
        "delta": package.delta,
        "head": package.head,
        "card": "# card\n",
        "pictures": {},
    }
    write_bare_package(folder, **{**parts, **changes})


def reseal(folder: Path, **changes: Any) -> None:
    """Write the manifest anew with the digests of the files as they are now: what an attacker could do."""
    table = json.loads((folder / "sparsehub.json").read_text(encoding="utf-8"))
    for name in table["files"]:
        table["files"][name] = {"size": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    (folder / "sparsehub.json").write_bytes(canonical_json({**table, **changes}))


def test_a_package_comes_back_as_it_was_written(golden: Package, tmp_path: Path) -> None:
    write(tmp_path / "new", golden, pictures={"a.png": PNG_SIGNATURE})
    found = read_package(tmp_path / "new")
    assert found.manifest == read_manifest(tmp_path / "new")
    assert set(found.manifest.files) == {"README.md", "a.png", "delta.safetensors", "head.safetensors"}
    for name, part in golden.delta.parameters.items():
        assert torch.equal(found.delta.parameters[name].indices, part.indices)
        assert torch.equal(found.delta.parameters[name].values, part.values)
    assert all(torch.equal(found.head[name], tensor) for name, tensor in golden.head.items())


def test_a_package_without_a_head_has_no_head_file(golden: Package, tmp_path: Path) -> None:
    write(tmp_path / "new", golden, head={})
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"README.md", "delta.safetensors", "sparsehub.json"}
    assert read_package(tmp_path / "new").head == {}


def test_a_signature_beside_the_files_is_allowed(folder: Path, golden: Package) -> None:
    (folder / "model.sig").write_text("signed")
    assert read_package(folder).digest == golden.digest


def make(name: str) -> Change:
    return lambda folder: (folder / name).write_text("content")


def link_to_itself_elsewhere(folder: Path) -> None:
    (folder / "README.md").rename(folder.parent / "README.md")
    (folder / "README.md").symlink_to(folder.parent / "README.md")


@pytest.mark.parametrize(
    "change",
    [
        make("evil.py"),
        make(".hidden"),
        make("model.pt"),
        make("b\\c.png"),
        lambda folder: (folder / "sub").mkdir(),
        lambda folder: (folder / "a.png").mkdir(),
        lambda folder: (folder / "a.png").symlink_to("/etc/passwd"),
        lambda folder: (folder / "a.png").symlink_to("README.md"),
        lambda folder: (folder / "a.png").symlink_to("nowhere"),
        lambda folder: os.mkfifo(folder / "a.png"),
        lambda folder: os.mkfifo(folder / "model.sig"),
        link_to_itself_elsewhere,
        lambda folder: (folder / b"\xff.png".decode("utf-8", "surrogateescape")).touch(),
    ],
)
def test_what_a_package_may_not_hold_is_refused(folder: Path, change: Change) -> None:
    change(folder)
    with pytest.raises(FormatError, match="holds something that a package may not hold") as caught:
        read_package(folder)
    str(caught.value).encode()  # whatever the name is, the message can be printed


@pytest.mark.parametrize(
    "change",
    [
        make("extra.png"),
        lambda folder: (folder / "README.md").unlink(),
        lambda folder: (folder / "density.png").rename(folder / "other.png"),
        lambda folder: (folder / "head.safetensors").unlink(),
        lambda folder: (folder / "delta.safetensors").unlink(),
    ],
)
def test_an_extra_or_missing_file_is_refused(folder: Path, change: Change) -> None:
    change(folder)
    with pytest.raises(FormatError, match="are not those of the manifest"):
        read_package(folder)


@pytest.mark.parametrize("name", ["README.md", "delta.safetensors", "density.png", "head.safetensors"])
def test_another_size_is_refused_before_the_bytes_are_read(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def watched(path: Any, *arguments: Any, **options: Any) -> int:
        assert Path(path).name == "sparsehub.json", "opened a file of the wrong size"
        return opened(path, *arguments, **options)

    monkeypatch.setattr(validation.os, "open", watched)
    data = (folder / name).read_bytes()
    for spoilt in (data[:-1], data + b"\x00", b""):
        (folder / name).write_bytes(spoilt)
        with pytest.raises(IntegrityError, match=f"{name} has the wrong size"):
            read_package(folder)


@pytest.mark.parametrize("name", ["README.md", "delta.safetensors", "density.png", "head.safetensors"])
def test_every_flipped_byte_of_a_file_is_refused(folder: Path, name: str) -> None:
    sound = (folder / name).read_bytes()
    for position in range(len(sound)):
        spoilt = bytearray(sound)
        spoilt[position] ^= 1 << position % 8
        (folder / name).write_bytes(spoilt)
        with pytest.raises(IntegrityError, match=f"{name} is damaged"):
            read_package(folder)
    (folder / name).write_bytes(sound)
    read_package(folder)


def test_a_flipped_byte_of_the_manifest_is_refused_or_another_digest(folder: Path, golden: Package) -> None:
    sound = (folder / "sparsehub.json").read_bytes()
    for position in range(0, len(sound), 5):
        spoilt = bytearray(sound)
        spoilt[position] ^= 1
        (folder / "sparsehub.json").write_bytes(spoilt)
        try:
            assert read_package(folder).digest != golden.digest
        except FormatError:
            pass


def test_a_folder_that_is_no_package_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ManifestError, match="is not a package"):
            read_package(path)


def test_a_manifest_over_the_limit_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "sparsehub.json").open("r+b") as file:
        file.truncate((8 << 20) + 1)
    with pytest.raises(ManifestError, match="too large"):
        read_manifest(folder)


def spoil_delta(change: dict[str, torch.Tensor]) -> Change:
    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file

        tensors = {**load_file(folder / "delta.safetensors"), **change}
        (folder / "delta.safetensors").write_bytes(tensor_bytes(tensors))
        reseal(folder)

    return spoil


def spoil_head(tensors: dict[str, torch.Tensor]) -> Change:
    def spoil(folder: Path) -> None:
        (folder / "head.safetensors").write_bytes(tensor_bytes(tensors))
        reseal(folder)

    return spoil


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_delta({"values": torch.tensor([1] * 6 + [float("nan")], dtype=torch.float16)}), "not finite"),
        (spoil_delta({"indices": torch.tensor([0, 1, 65_535, 0, 65_535, 0, 6]).to(torch.uint16)}), "out of range"),
        (spoil_delta({"other": torch.ones(1)}), "does not hold the tensors"),
        (
            spoil_delta(
                {
                    "indices": torch.tensor([0, 1, 65_535, 0, 65_535, 4, 5]).to(torch.uint16),
                    "counts": torch.tensor([3, 2, 0, 0, 2], dtype=torch.int32),
                }
            ),
            "'embed.weight' has another number of entries than the manifest says; found: 5; expected: 6",
        ),
        (spoil_head({"classifier.weight": torch.tensor([float("inf")])}), "'classifier.weight' holds values"),
        (spoil_head({"../../x": torch.ones(1)}), "named like a path"),
    ],
)
def test_contents_are_proved_even_where_every_digest_is_right(folder: Path, change: Change, message: str) -> None:
    change(folder)
    with pytest.raises(FormatError, match=message):
        read_package(folder)


def test_a_pickle_in_place_of_the_head_is_refused(folder: Path) -> None:
    torch.save({"classifier.weight": torch.ones(1)}, folder / "head.safetensors")
    reseal(folder)
    with pytest.raises(FormatError, match="not safetensors"):
        read_package(folder)


@pytest.mark.parametrize("name", ["sparsehub.json", "model.sig"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_what_is_no_plain_file_is_neither_followed_nor_waited_for(folder: Path, name: str, kind: str) -> None:
    """As somebody may put one there between a look and a read."""
    place, aside = folder / name, folder.parent / "aside"
    if place.exists():
        place.rename(aside)
    make = {
        "link": lambda: place.symlink_to(aside),
        "pipe": lambda: os.mkfifo(place),
        "folder": place.mkdir,
        "device": lambda: place.symlink_to("/dev/zero"),
    }
    make[kind]()
    with pytest.raises((FormatError, TrustError)):
        read_manifest(folder) if name == "sparsehub.json" else read_signature(folder)


def test_a_package_that_changes_while_it_is_read_is_refused_or_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is swapped for another one right after it was looked at, or right before it is read."""
    whole = read_package(folder)
    opened = os.open
    for name in ("delta.safetensors", "head.safetensors", "README.md", "density.png"):
        data = (folder / name).read_bytes()

        def swapped(path: Any, *arguments: Any, name: str = name, data: bytes = data, **options: Any) -> int:
            if Path(path).name == name:
                Path(path).unlink()
                Path(path).write_bytes(bytes([data[0] ^ 1]) + data[1:])
            return opened(path, *arguments, **options)

        monkeypatch.setattr(validation.os, "open", swapped)
        with pytest.raises(FormatError, match=f"{name} is damaged or was changed"):
            read_package(folder)
        monkeypatch.undo()
        (folder / name).unlink()
        (folder / name).write_bytes(data)
    assert read_package(folder).digest == whole.digest
