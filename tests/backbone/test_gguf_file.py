"""The table of a GGUF file: read, digested, and refused where a bound is broken, without the library that loads it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from sparsehub.backbone import open_checkpoint
from sparsehub.backbone.gguf_file import find_gguf, read_gguf_header
from sparsehub.errors import BackboneError, FormatError

Tensor = tuple[bytes, tuple[int, ...], int, int]
TABLE: list[Tensor] = [(b"token_embd.weight", (32, 4), 8, 0), (b"output_norm.weight", (32,), 0, 160)]
DATA = bytes(range(160)) + bytes(128)
KEYS = [
    (b"general.architecture", 8, struct.pack("<Q", 5) + b"llama"),
    (b"general.file_type", 4, struct.pack("<I", 7)),
    (b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + (struct.pack("<Q", 1) + b"a") * 2),
    (b"tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 2) + bytes(8)),
]


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(
    table: Sequence[Tensor] = TABLE,
    keys: Sequence[tuple[bytes, int, bytes]] = KEYS,
    data: bytes = DATA,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    tensors, said = counts or (len(table), len(keys))
    parts = [magic, struct.pack("<IQQ", version, tensors, said)]
    parts += [text(key) + struct.pack("<I", kind) + value for key, kind, value in keys]
    for name, shape, kind, offset in table:
        parts.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
    head = b"".join(parts)
    return head + bytes(-len(head) % alignment) + data


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_every_tensor_has_its_place_shape_and_type(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(gguf())
    header = read_gguf_header(folder / "a.gguf")
    embedding, norm = header.entries["token_embd.weight"], header.entries["output_norm.weight"]
    assert (embedding.dtype, embedding.shape, norm.dtype, norm.shape) == ("ggml:8", (4, 32), "ggml:0", (32,))
    data = (folder / "a.gguf").read_bytes()
    assert data[embedding.start : embedding.stop] == DATA[:160]
    assert data[norm.start : norm.stop] == DATA[160:]


def test_another_alignment_is_followed(folder: Path) -> None:
    keys = [*KEYS, (b"general.alignment", 4, struct.pack("<I", 128))]
    table = [TABLE[0], (b"output_norm.weight", (32,), 0, 256)]
    (folder / "a.gguf").write_bytes(gguf(table, keys, DATA + bytes(96), alignment=128))
    assert read_gguf_header(folder / "a.gguf").entries["token_embd.weight"].start % 128 == 0


def fingerprint(folder: Path, data: bytes) -> str:
    (folder / "a.gguf").write_bytes(data)
    found = open_checkpoint(str(folder))
    assert (found.quantised, found.dtype) == ("gguf", "other")
    return found.fingerprint


def test_the_identity_covers_values_types_names_and_all_that_is_said(folder: Path) -> None:
    other_value = DATA[:3] + b"\xff" + DATA[4:]
    other_type = [(b"token_embd.weight", (32, 4), 9, 0), TABLE[1]]
    other_name = [TABLE[0], (b"output_nork.weight", (32,), 0, 160)]
    other_key = [*KEYS[:1], (b"general.file_type", 4, struct.pack("<I", 8)), *KEYS[2:]]
    files = [gguf(), gguf(data=other_value), gguf(other_type), gguf(other_name), gguf(keys=other_key)]
    assert len({fingerprint(folder, data) for data in files}) == len(files)
    assert fingerprint(folder, gguf()) == fingerprint(folder, gguf())


BROKEN = {
    "no GGUF": gguf(magic=b"GGML"),
    "empty": b"",
    "no tensor": gguf([]),
    "another version": gguf(version=4),
    "the other byte order": gguf(version=3 << 24),
    "too many tensors": gguf(counts=(1 << 40, 0)),
    "more keys than there are": gguf(counts=(2, 60_000)),
    "a text longer than the file": gguf(keys=[(b"a", 8, struct.pack("<Q", 1 << 62))]),
    "an array longer than the file": gguf(keys=[(b"a", 9, struct.pack("<IQ", 12, 1 << 61))]),
    "an array of arrays": gguf(keys=[(b"a", 9, struct.pack("<IQ", 9, 1))]),
    "a value of an unknown type": gguf(keys=[(b"a", 77, b"")]),
    "a key twice": gguf(keys=[KEYS[0], KEYS[0]]),
    "an alignment of nothing": gguf(keys=[(b"general.alignment", 4, bytes(4))]),
    "a tensor twice": gguf([TABLE[0], (TABLE[0][0], (32,), 0, 160)]),
    "two tensors in one place": gguf([TABLE[0], (b"other", (32, 4), 8, 0)]),
    "a tensor without a name": gguf([(b"", (32,), 0, 0)]),
    "a name that cannot be shown": gguf([(b"a\nb", (32,), 0, 0)]),
    "too many axes": gguf([(b"a", (1,) * 9, 0, 0)]),
    "an absurd shape": gguf([(b"a", (1 << 40, 1 << 40), 0, 0)]),
    "an offset between": gguf([TABLE[0], (b"b", (32,), 0, 161)]),
    "an offset behind the end": gguf([TABLE[0], (b"b", (32,), 0, 3200)]),
    "cut in its table": gguf()[:150],
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_file_is_refused(folder: Path, what: str) -> None:
    (folder / "a.gguf").write_bytes(BROKEN[what])
    with pytest.raises(FormatError):
        read_gguf_header(folder / "a.gguf")
    with pytest.raises(BackboneError, match="cannot be read"):
        open_checkpoint(str(folder))


def test_every_cut_of_a_file_is_refused_or_another_backbone(folder: Path) -> None:
    whole = gguf()
    good = fingerprint(folder, whole)
    for length in range(0, len(whole), 7):
        (folder / "a.gguf").write_bytes(whole[:length])
        try:
            assert open_checkpoint(str(folder)).fingerprint != good
        except BackboneError:
            pass


def test_no_byte_of_a_table_brings_anything_but_a_refusal(folder: Path) -> None:
    whole, path = gguf(), folder / "a.gguf"
    for place in range(len(whole) - len(DATA)):
        for value in (0, 1, 9, 127, 255):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                header = read_gguf_header(path)
            except FormatError:
                continue
            assert all(0 < entry.start < entry.stop <= len(whole) for entry in header.entries.values())


def test_several_files_are_several_models(folder: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(gguf())
    with pytest.raises(BackboneError, match=r"several GGUF files.*a\.gguf, b\.gguf.*folder of its own"):
        open_checkpoint(str(folder))


def test_safetensors_beside_it_are_the_checkpoint(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(gguf())
    (folder / "model.safetensors").write_bytes(b"")
    assert find_gguf(folder) is None
