"""A package's life on the command line: inspect, verify, push, ls, pull, materialize."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparsehub.package import read_package


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def package(tiny_tasks: Any, tmp_path: Path) -> Path:
    """A package of its own, to be spoilt."""
    return shutil.copytree(tiny_tasks.write("three", labels=3, seed=1), tmp_path / "package")


@pytest.fixture
def hub(package: Path, tmp_path: Path, run: Any) -> Path:
    assert run("push", package, tmp_path / "hub").code == 0
    return tmp_path / "hub"


def as_json(done: Any) -> Any:
    """Standard output, which is one JSON value on one line and nothing else."""
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    return json.loads(done.out)


def error_line(done: Any) -> str:
    assert done.code == 2 and done.out == ""
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and done.err.splitlines()[-1] == lines[0] and "Traceback" not in done.err
    return lines[0]


def test_inspect(run: Any, package: Path) -> None:
    manifest = read_package(package).manifest
    found = as_json(run("inspect", package, "--json"))
    assert found["digest"] == manifest.digest
    assert found["bytes"] == sum(path.stat().st_size for path in package.iterdir())
    assert found["manifest"] == json.loads(manifest.to_bytes())
    shown = run("inspect", package).out
    for text in ("three@1.0.0", manifest.digest, "text-classification", "label0, label1, label2", "encoder.layer 0"):
        assert text in shown
    listed = run("inspect", package, "--parameters").out
    assert all(name in listed for name in manifest.delta.parameters)


def test_verify(run: Any, package: Path, tiny_tasks: Any) -> None:
    digest = read_package(package).digest
    assert as_json(run("verify", package, "--json")) == {
        "valid": True,
        "digest": digest,
        "publisher": None,
        "backbone": None,
    }
    shown = run("verify", package, "--backbone", tiny_tasks.folder)
    assert shown.code == 0 and f"valid {digest}" in shown.out and str(tiny_tasks.folder) in shown.out
    found = as_json(run("verify", package, "--backbone", tiny_tasks.folder, "--json"))
    assert found["valid"] and found["backbone"] == str(tiny_tasks.folder)


@pytest.mark.parametrize("name", ["delta.safetensors", "head.safetensors", "README.md"])
def test_verify_says_which_file_was_tampered_with(run: Any, package: Path, name: str) -> None:
    data = bytearray((package / name).read_bytes())
    data[-3] ^= 1
    (package / name).write_bytes(data)
    assert name in error_line(run("verify", package))
    assert run("verify", package, "--json").out == ""


def test_verify_refuses_a_manifest_that_was_edited(run: Any, package: Path) -> None:
    manifest = package / "sparsehub.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"max_length":', b'"max_length": '))
    assert "sparsehub.json is not in canonical form" in error_line(run("verify", package))


def test_verify_refuses_an_added_file(run: Any, package: Path) -> None:
    (package / "run.py").write_text("print()")
    assert "run.py" in error_line(run("verify", package))


def test_verify_refuses_another_backbone(run: Any, package: Path, tiny_tasks: Any, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_tasks.folder, tmp_path / "other")
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    assert "was made for another backbone" in error_line(run("verify", package, "--backbone", other))
    assert "there is no backbone folder" in error_line(run("verify", package, "--backbone", tmp_path / "none"))


def test_push_and_ls(run: Any, package: Path, tmp_path: Path) -> None:
    hub, digest = tmp_path / "hub", read_package(package).digest
    assert as_json(run("push", package, hub, "--json")) == {
        "name": "three",
        "version": "1.0.0",
        "digest": digest,
        "hub": str(hub),
    }
    renamed = as_json(run("push", package, hub, "--name", "drei", "--version", "2.0.0", "--json"))
    assert renamed["digest"] != digest
    entries = as_json(run("ls", hub, "--all", "--json"))
    assert [(entry["name"], entry["version"]) for entry in entries] == [("drei", "2.0.0"), ("three", "1.0.0")]
    assert entries[1]["digest"] == digest and entries[1]["nnz"] == read_package(package).delta.nnz
    shown = run("ls", hub).out
    assert "drei@2.0.0" in shown and "three@1.0.0" in shown
    assert "published three@1.0.0" in run("push", package, hub).out, "the same package again is fine"


def test_a_version_is_published_once(run: Any, package: Path, hub: Path, tiny_tasks: Any) -> None:
    other = tiny_tasks.write("three", labels=3, seed=99)
    assert "three@1.0.0" in error_line(run("push", other, hub))


def test_pull(run: Any, package: Path, hub: Path, tmp_path: Path) -> None:
    digest = read_package(package).digest
    for place, reference in enumerate(("three", "three@1.0.0", f"three@{digest}")):
        out = tmp_path / f"out{place}"
        found = as_json(run("pull", reference, "--hub", hub, "--out", out, "--json"))
        assert found == {
            "name": "three",
            "version": "1.0.0",
            "digest": digest,
            "package": str(out),
            "publisher": None,
        }
        assert {path.name: path.read_bytes() for path in out.iterdir()} == {
            path.name: path.read_bytes() for path in package.iterdir()
        }
    assert "exists already" in error_line(run("pull", "three", "--hub", hub, "--out", tmp_path / "out0"))
    assert "three" in error_line(run("pull", "thre", "--hub", hub, "--out", tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_pull_refuses_a_damaged_hub_and_leaves_nothing(run: Any, hub: Path, tmp_path: Path) -> None:
    largest = max((hub / "blobs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(largest.read_bytes())
    data[-1] ^= 1
    largest.write_bytes(data)
    assert "damaged" in error_line(run("pull", "three", "--hub", hub, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_ls_shows_a_damaged_version_beside_the_sound_ones(run: Any, package: Path, hub: Path) -> None:
    run("push", package, hub, "--version", "2.0.0")
    (manifest,) = (hub / "manifests").rglob(read_package(package).digest.removeprefix("sha256:"))
    manifest.write_bytes(b"{}")
    damaged, sound = as_json(run("ls", hub, "--all", "--json"))
    assert damaged["error"] and sound["error"] is None
    done = run("ls", hub, "three")
    assert done.code == 0 and "damaged: three@1.0.0" in done.err and "three@2.0.0" in done.out


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_materialize(run: Any, package: Path, hub: Path, tiny_tasks: Any, tmp_path: Path, place: str) -> None:
    import torch
    import transformers

    source = [package] if place == "folder" else ["three@1.0.0", "--hub", hub]
    out = tmp_path / "checkpoint"
    found = as_json(run("materialize", *source, "--backbone", tiny_tasks.folder, "--out", out, "--json"))
    assert found == {"checkpoint": str(out), "digest": read_package(package).digest, "dtype": "float32"}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    head = read_package(package).head
    assert torch.equal(model.classifier.weight, head["classifier.weight"])
    assert model.config.id2label == {0: "label0", 1: "label1", 2: "label2"}
    again = run("materialize", *source, "--backbone", tiny_tasks.folder, "--out", out)
    assert "exists already" in error_line(again)
