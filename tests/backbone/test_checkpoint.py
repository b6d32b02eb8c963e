from __future__ import annotations

import ast
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsehub.backbone import checkpoint as module
from sparsehub.backbone import open_checkpoint
from sparsehub.errors import BackboneError

TENSORS = {
    "embed.weight": torch.arange(12, dtype=torch.float32).view(4, 3),
    "norm.weight": torch.ones(3, dtype=torch.bfloat16),
    "norm.scale": torch.tensor(0.5),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors")
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, one item for each tensor."""
    calls: list[Path] = []
    original = module.tensor_digest
    monkeypatch.setattr(module, "tensor_digest", lambda path, entry: (calls.append(path), original(path, entry))[1])
    return calls


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def split(folder: Path, files: dict[str, list[str]]) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    for file, names in files.items():
        save_file({name: TENSORS[name] for name in names}, folder / file)
    table = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))


def test_digests_follow_the_written_rule(folder: Path) -> None:
    digests = open_checkpoint(str(folder)).digests
    weight = TENSORS["embed.weight"].numpy().tobytes()
    assert digests["embed.weight"] == "sha256:" + hashlib.sha256(b"F32 [4, 3]\n" + weight).hexdigest()
    assert digests["norm.weight"] == "sha256:" + hashlib.sha256(b"BF16 [3]\n" + b"\x80\x3f" * 3).hexdigest()
    assert digests["norm.scale"] == "sha256:" + hashlib.sha256(b"F32 []\n" + b"\x00\x00\x00\x3f").hexdigest()


def test_the_fingerprint_follows_the_written_rule(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    lines = "".join(f"{name} {checkpoint.digests[name]}\n" for name in ("embed.weight", "norm.scale", "norm.weight"))
    assert checkpoint.fingerprint == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    ("stored", "name"),
    [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16"), (torch.int8, "other")],
)
def test_the_dtype_is_that_of_most_bytes(folder: Path, stored: torch.dtype, name: str) -> None:
    save_file({"few": torch.zeros(3), "many": torch.zeros(100, dtype=stored)}, folder / "model.safetensors")
    assert open_checkpoint(str(folder)).dtype == name


def test_digests_do_not_depend_on_the_chunk_size(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = open_checkpoint(str(folder))
    monkeypatch.setattr(module, "CHUNK", 5)
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "other"))
    assert open_checkpoint(str(folder)) == before


def test_saving_again_keeps_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    tensors = load_file(folder / "model.safetensors")
    save_file(dict(reversed(tensors.items())), again / "model.safetensors", metadata={"format": "pt"})
    assert open_checkpoint(str(again)).fingerprint == open_checkpoint(str(folder)).fingerprint


def test_splitting_over_files_keeps_the_fingerprint(folder: Path) -> None:
    whole = open_checkpoint(str(folder))
    split(folder, {"a.safetensors": ["norm.scale", "embed.weight"], "b.safetensors": ["norm.weight"]})
    parts = open_checkpoint(str(folder))
    assert parts.digests == whole.digests
    assert parts.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"embed.weight": TENSORS["embed.weight"].view(3, 4)},
        {"embed.weight": TENSORS["embed.weight"].to(torch.float64)},
        {"norm.weight": torch.ones(3, dtype=torch.float16)},
        {"embed.weight": torch.nextafter(TENSORS["embed.weight"], torch.tensor(99.0))},
        {"other": torch.ones(1)},
    ],
    ids=["shape", "dtype", "half dtype", "last bits", "one more"],
)
def test_the_fingerprint_differs_with(folder: Path, changed: dict[str, torch.Tensor]) -> None:
    before = open_checkpoint(str(folder)).fingerprint
    save_file({**TENSORS, **changed}, folder / "model.safetensors")
    assert open_checkpoint(str(folder)).fingerprint != before


def test_a_renamed_tensor_is_another_fingerprint(folder: Path) -> None:
    before = open_checkpoint(str(folder)).fingerprint
    save_file({name.upper(): tensor for name, tensor in TENSORS.items()}, folder / "model.safetensors")
    assert open_checkpoint(str(folder)).fingerprint != before


def test_one_flipped_bit_is_another_fingerprint(folder: Path) -> None:
    before = open_checkpoint(str(folder))
    flip_last_byte(folder / "model.safetensors")
    after = open_checkpoint(str(folder))
    assert after.fingerprint != before.fingerprint
    assert len({name for name in TENSORS if after.digests[name] != before.digests[name]}) == 1


def test_a_second_opening_hashes_nothing(folder: Path, hashed: list[Path]) -> None:
    first = open_checkpoint(str(folder))
    assert len(hashed) == len(TENSORS)
    assert open_checkpoint(str(folder)) == first
    assert len(hashed) == len(TENSORS)


def test_the_cache_notices_a_changed_file_of_the_same_size_and_time(folder: Path, hashed: list[Path]) -> None:
    file = folder / "model.safetensors"
    first, status = open_checkpoint(str(folder)), file.stat()
    flip_last_byte(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_checkpoint(str(folder)).fingerprint != first.fingerprint
    assert len(hashed) == 2 * len(TENSORS)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff", b'{"a":"b","a":"c"}'])
def test_a_damaged_cache_is_hashed_again(folder: Path, tmp_path: Path, damage: bytes) -> None:
    first = open_checkpoint(str(folder))
    (cached,) = (tmp_path / "cache" / "fingerprints").iterdir()
    cached.write_bytes(damage)
    assert open_checkpoint(str(folder)) == first
    assert json.loads(cached.read_text()) == first.digests


def test_a_cache_that_cannot_be_written_is_no_failure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "file"))
    assert set(open_checkpoint(str(folder)).digests) == set(TENSORS)


def test_a_folder_has_no_revision_and_is_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    checkpoint = open_checkpoint("./checkpoint")
    assert (checkpoint.id, checkpoint.revision, checkpoint.folder) == ("./checkpoint", "", folder.resolve())


@pytest.mark.parametrize("reference", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_a_missing_folder_is_refused_without_a_download(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_download", lambda *_: pytest.fail("tried to download"))
    with pytest.raises(BackboneError, match="no backbone folder"):
        open_checkpoint(reference)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(BackboneError, match=r"pytorch_model\.bin.*save_pretrained"):
        open_checkpoint(str(folder))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match="no weights at all"):
        open_checkpoint(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "file", ["absent.safetensors", "../checkpoint/a.safetensors", "/etc/passwd", "sub/a.safetensors"]
)
def test_an_index_that_names_another_place_is_refused(folder: Path, file: str) -> None:
    split(folder, {"a.safetensors": list(TENSORS)})
    table = {"weight_map": {"embed.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(BackboneError, match="names files that are not there"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', "{", '{"weight_map": {}}']
)
def test_a_malformed_index_is_refused(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BackboneError):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("cut", [0, 7, 8, 100, -1])
def test_truncated_weights_are_refused(folder: Path, cut: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(BackboneError, match="cannot be read"):
        open_checkpoint(str(folder))


def test_a_file_that_shrinks_while_it_is_hashed_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    entry = max(module.read_header(file).entries.values(), key=lambda e: e.stop)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BackboneError, match="cut while it was read"):
        module.tensor_digest(file, entry)


def test_a_downloaded_checkpoint_carries_its_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    snapshot = folder.rename(folder.with_name("0123abcd"))
    asked: list[tuple[str, str | None]] = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    checkpoint = open_checkpoint("owner/backbone", "main")
    assert (checkpoint.id, checkpoint.revision) == ("owner/backbone", "0123abcd")
    assert asked == [("owner/backbone", "main")]


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(BackboneError, match=r"owner/backbone.*no route to host; to do: check the id"):
        open_checkpoint("owner/backbone")


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 90868376\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_called_one(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    with pytest.raises(BackboneError, match=rf"holds Git LFS pointers.*found: {name}; to do: .*git lfs pull"):
        open_checkpoint(str(folder))


SHARDS = {
    "model-00001-of-00002.safetensors": ["embed.weight"],
    "model-00002-of-00002.safetensors": ["norm.weight", "norm.scale"],
}


def test_a_whole_set_of_shards_needs_no_index(folder: Path) -> None:
    whole = open_checkpoint(str(folder)).fingerprint
    split(folder, SHARDS)
    (folder / "model.safetensors.index.json").unlink()
    assert open_checkpoint(str(folder)).fingerprint == whole


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (dict(list(SHARDS.items())[:1]), r"without their index.*expected: model-00002-of-00002\.safetensors as well"),
        (SHARDS | {"other-00001-of-00001.safetensors": ["norm.scale"]}, "not all of one set"),
        (SHARDS | {"model-00002-of-00002.safetensors": list(TENSORS)}, "hold a tensor twice; found: embed.weight"),
    ],
)
def test_shards_that_are_no_whole_set_are_refused(folder: Path, files: dict[str, list[str]], message: str) -> None:
    split(folder, files)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(BackboneError, match=message):
        open_checkpoint(str(folder))


def test_an_adapter_is_no_checkpoint(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BackboneError, match="holds a PEFT adapter, not a checkpoint"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_checkpoint_that_brings_code_is_refused_by_name(
    folder: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked"))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / file).write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil"}))
    (folder / "evil.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(BackboneError, match=rf"auto_map in {file}.*evil\.Model.*choose another backbone"):
        open_checkpoint(str(folder))


def test_whatever_transformers_loads_it_is_told_to_run_no_code() -> None:
    """Without the word it would ask at the keyboard, and wait there."""
    root, calls = Path(__file__).parents[2], 0
    for file in [*root.glob("sparsehub/**/*.py"), *root.glob("serving/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if node.func.attr in ("from_pretrained", "from_config") and "auto" in owner.lower():
                    calls += 1
                    told = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert told.get("trust_remote_code") == "False", f"{file}:{node.lineno}"
    assert calls >= 7
