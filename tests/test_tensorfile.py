from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from sparsehub.errors import DeltaError, FormatError
from sparsehub.tensorfile import TensorEntry, load_tensors, parse_table, read_header, require_finite, tensor_bytes

Write = Callable[..., Path]
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write any header (an object, or bytes as they are) and data; `length` lies about the header's length."""

    def write_raw(header: Any, data: bytes = b"", length: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        return path

    return write_raw


def entry(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "b": torch.tensor([[0, 1], [1, 1]]).to(dtype),
        "a": torch.tensor(1).to(dtype),
        "c": torch.zeros(0, 3).to(dtype),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensor_bytes(tensors))
    found = load_tensors(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (dtype, tensor.shape)
        assert torch.equal(found[name].float(), tensor.float())


def test_the_header_says_where_the_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3], dtype=torch.int8)}, {"made": "here"}))
    header, data = read_header(path), path.read_bytes()
    a, b = header.entries["a"], header.entries["b"]
    assert (a.dtype, a.shape, b.dtype, b.shape) == ("F32", (2,), "I8", (1,))
    assert data[a.start : a.stop] == struct.pack("<2f", 1.0, 2.0)
    assert data[b.start : b.stop] == b"\x03"
    assert header.metadata == {"made": "here"}


def test_the_bytes_do_not_depend_on_order_strides_or_gradients() -> None:
    weight = torch.arange(6.0).view(2, 3)
    plain = tensor_bytes({"a": weight.clone(), "b": torch.ones(1)})
    assert tensor_bytes({"b": torch.ones(1, requires_grad=True), "a": weight.t().contiguous().t()}) == plain


def test_tensors_that_share_memory_are_written_one_by_one() -> None:
    buffer = torch.arange(8.0)
    parts = {"a": buffer[:4], "b": buffer[4:], "c": buffer[2:6], "d": buffer}
    assert tensor_bytes(parts) == tensor_bytes({name: part.clone() for name, part in parts.items()})


def test_an_empty_file_of_no_tensors_is_read(write: Write) -> None:
    assert load_tensors(write({})) == {}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b'{"a":1,"a":2}', b"", "names a key twice"),
        ({"a": entry(shape=[0, 2**60], offsets=[0, 0])}, b"", "absurd shape"),
        ({"a": entry(shape=[2**60, 0], offsets=[0, 0])}, b"", "absurd shape"),
        ({"a": entry(shape=[0] + [2**47] * 4, offsets=[0, 0])}, b"", "absurd shape"),
        ({"a": entry(shape=[2**32, 2**32], offsets=[0, 0])}, b"", "disagree"),
        ({"a": entry(shape=[1] * 9)}, b"1", "malformed shape"),
        ({"a": entry(shape=[-1])}, b"1", "malformed shape"),
        ({"a": entry(shape=[1.0])}, b"1", "malformed shape"),
        ({"a": entry(shape=[True])}, b"1", "malformed shape"),
        ({"a": entry(shape=["1"])}, b"1", "malformed shape"),
        ({"a": entry(shape=None)}, b"1", "malformed shape"),
        ({"a": entry(shape=1)}, b"1", "malformed shape"),
        ({"a": entry(offsets=[0.0, 1.0])}, b"1", "malformed shape or offsets"),
        ({"a": entry(offsets=[0, 1, 2])}, b"1", "malformed shape or offsets"),
        ({"a": entry(offsets=[-1, 0])}, b"1", "malformed shape or offsets"),
        ({"a": entry(offsets=[1, 0])}, b"1", "disagree"),
        ({"a": entry(offsets=[2**70, 2**70 + 1])}, b"1", "hole"),
        ({"a": entry(offsets=None)}, b"1", "malformed shape or offsets"),
        ({"a": entry(shape=[2])}, b"1", "disagree"),
        ({"a": entry("F32")}, b"1", "disagree"),
        ({"a": entry("F4")}, b"1", "unknown dtype; found: F4"),
        ({"a": entry("f32")}, b"1", "unknown dtype"),
        ({"a": entry([])}, b"1", "unknown dtype"),
        ({"a": entry({})}, b"1", "unknown dtype"),
        ({"a": entry(None)}, b"1", "unknown dtype"),
        ({"a": entry(), "b": entry()}, b"1", "overlaps another"),
        ({"a": entry("U16", [1], [0, 2]), "b": entry("U16", [1], [1, 3])}, b"123", "overlaps another"),
        ({"a": entry(), "b": entry(offsets=[2, 3])}, b"123", "leaves a hole"),
        ({"a": entry(offsets=[1, 2])}, b"12", "leaves a hole"),
        ({"a": entry()}, b"", "truncated or has trailing bytes"),
        ({"a": entry()}, b"12", "truncated or has trailing bytes"),
        ({}, b"1", "truncated or has trailing bytes"),
        ({"a": {"dtype": "U8", "shape": [1]}}, b"1", "malformed"),
        ({"a": {**entry(), "more": 1}}, b"1", "malformed"),
        ({"a": []}, b"1", "malformed"),
        ({"a": None}, b"1", "malformed"),
        ({"__metadata__": 5}, b"", "__metadata__ is not an object"),
        ({"__metadata__": {"a": 5}}, b"", "cannot be read"),
        ({"": entry()}, b"1", "malformed name"),
        ({"a" * 513: entry()}, b"1", "malformed name"),
        ({"a\n": entry()}, b"1", "malformed name"),
        ({"a\x00b": entry()}, b"1", "malformed name"),
        ({"\ud800": entry()}, b"1", "malformed name"),
        ({"\u202ea": entry()}, b"1", "malformed name"),
        ({"../../x": entry()}, b"1", "named like a path"),
        ({"/etc/passwd": entry()}, b"1", "named like a path"),
        ({"..\\x": entry()}, b"1", "named like a path"),
        ([], b"", "not an object"),
        (b"", b"", "not valid JSON"),
        (b"null", b"", "not an object"),
        (b"\xff\xff", b"", "not valid JSON"),
        (b'{"a":NaN}', b"", "not finite"),
        (b'{"a":1e999}', b"", "not finite"),
        (b'{"a":' + b"9" * 5_000 + b"}", b"", "not valid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, b"", "not valid JSON"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, b"", "nested too deeply"),
    ],
)
def test_a_hostile_header_is_refused(write: Write, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        load_tensors(write(header, data))


@pytest.mark.parametrize("length", [3, 2**31, 2**32 + 2, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused_before_it_is_read(write: Write, length: int) -> None:
    with pytest.raises(FormatError, match=f"a header of {length} bytes"):
        read_header(write(b"{}", length=length))


def test_a_header_over_the_limit_is_refused_before_it_is_read(write: Write) -> None:
    path = write(b"{}", length=200_000_000)
    with path.open("r+b") as file:
        file.truncate(300_000_000)  # a file with a hole: it takes no room
    with pytest.raises(FormatError, match="a header of 200000000 bytes"):
        read_header(path)


@pytest.mark.parametrize("size", range(8))
def test_a_file_without_a_whole_length_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x02\x00\x00\x00\x00\x00\x00"[:size])
    with pytest.raises(FormatError, match="truncated"):
        read_header(path)


def test_a_long_name_is_cut_in_the_message(write: Write) -> None:
    with pytest.raises(FormatError) as caught:
        read_header(write({"a" * 100_000: entry()}, b"1"))
    assert len(str(caught.value)) < 1_000


def test_tensors_without_entries_may_share_a_place() -> None:
    table = {"a": entry(shape=[0], offsets=[0, 0]), "b": entry(), "c": entry(shape=[0, 4], offsets=[1, 1])}
    table = json.loads(json.dumps(table))
    header = parse_table(table, data_start=100, size=101, what="it")
    assert header.entries["b"] == TensorEntry("U8", (1,), 100, 101)
    assert header.entries["c"] == TensorEntry("U8", (0, 4), 101, 101)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_values_that_are_not_finite_are_refused_by_name(dtype: torch.dtype, value: float) -> None:
    with pytest.raises(DeltaError, match="'weight' holds values that are not finite"):
        require_finite("weight", torch.tensor([1.0, value]).to(dtype), DeltaError)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_values_of_every_dtype_pass(dtype: torch.dtype) -> None:
    require_finite("weight", torch.tensor([0, 1]).to(dtype), FormatError)
