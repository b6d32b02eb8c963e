"""Files that somebody else made: refused with our own errors, whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsehub.delta import Delta, delta_bytes, read_delta
from sparsehub.delta.delta import check_delta
from sparsehub.errors import DeltaError, FormatError

SHAPES = {"w": (3, 50_000), "b": (4,)}
Tensors = dict[str, torch.Tensor]
Write = Callable[..., Path]


def uint16(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint16)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def half(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float16)


def test_the_tensors_to_be_spoilt_are_sound(small_tensors: Tensors, write_tensors: Write) -> None:
    delta = read_delta(write_tensors(small_tensors), SHAPES, "add", "float16")
    assert delta.parameters["w"].indices.tolist() == [0, 65_535, 65_536, 84_463 + 65_536]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w.indices": uint16(5, 5, 0, 9)}, "not strictly increasing"),
        ({"w.indices": uint16(9, 5, 0, 9)}, "not strictly increasing"),
        ({"w.indices": uint16(0, 1, 0, 18_928)}, "out of range"),
        ({"b.indices": uint16(4)}, "out of range"),
        ({"w.blocks": int32(0, 2, 3, 5)}, "disagree"),
        ({"w.blocks": int32(0, 2, 3, 3)}, "disagree"),
        ({"w.blocks": int32(1, 2, 3, 4)}, "disagree"),
        ({"w.blocks": int32(0, 3, 2, 4)}, "disagree"),
        ({"w.blocks": int32(0, -1, 3, 4)}, "disagree"),
        ({"w.blocks": int32(-4, 2, 3, 4)}, "disagree"),
        ({"w.blocks": int32(0, 2**31 - 1, -(2**31), 4)}, "disagree"),
        ({"w.blocks": int32(0, 4)}, "wrong type or length"),
        ({"w.blocks": int32(0, 2, 3, 4, 4)}, "wrong type or length"),
        ({"w.blocks": int32(0, 2, 3, 4).view(2, 2)}, "wrong type or length"),
        ({"w.blocks": torch.tensor([0, 2, 3, 4])}, "wrong type or length"),
        ({"w.indices": torch.tensor([0, 5, 0, 9], dtype=torch.int16)}, "wrong type or length"),
        ({"w.indices": uint16(0, 5, 0, 9).view(2, 2)}, "wrong type"),
        ({"w.indices": uint16(0, 5, 0)}, "disagree"),
        ({"w.values": half(1, 2, 3)}, "do not fit together"),
        ({"w.values": half(1, 2, 3, 4, 5)}, "do not fit together"),
        ({"w.values": half(1, 2, 3, 4).view(4, 1)}, "wrong type"),
        ({"w.values": half(1, 2, 3, 4).float()}, "wrong type; found: torch.float32; expected: flat float16"),
        ({"w.values": half(1, 2, 3, 4).bfloat16()}, "wrong type"),
        ({"w.values": torch.ones(4, dtype=torch.int16)}, "wrong type"),
        ({"w.values": half(1, 2, 3, float("nan"))}, "not finite"),
        ({"w.values": half(1, 2, 3, float("inf"))}, "not finite"),
        ({"b.indices": uint16(), "b.blocks": int32(0, 0), "b.values": half()}, "'b' has no entries"),
        ({"c.indices": uint16(1)}, "found: c.indices"),
        ({"w.scales": torch.ones(1)}, "found: w.scales"),
        ({"w.values": None}, "expected: w.values"),
        ({"b.indices": None, "b.blocks": None, "b.values": None}, "expected: b.blocks, b.indices, b.values"),
    ],
)
def test_spoilt_tensors_are_refused(
    small_tensors: Tensors, write_tensors: Write, change: dict[str, torch.Tensor | None], message: str
) -> None:
    spoilt = {name: tensor for name, tensor in {**small_tensors, **change}.items() if tensor is not None}
    with pytest.raises(DeltaError, match=message):
        read_delta(write_tensors(spoilt), SHAPES, "add", "float16")


@pytest.mark.parametrize(
    ("integers", "scales", "message"),
    [
        ([-128], torch.tensor([1.0]), "-128"),
        ([1], torch.tensor([-1.0]), "negative scale"),
        ([1], torch.tensor([float("nan")]), "not finite"),
        ([1], torch.tensor([float("inf")]), "not finite"),
        ([127], torch.tensor([3.4e38]), "not finite"),
        ([1], torch.tensor([1.0, 1.0]), "scales"),
        ([1], torch.tensor([]), "scales"),
        ([1], torch.tensor([[1.0]]), "scales"),
        ([1], torch.tensor([1.0], dtype=torch.float16), "scales"),
        ([1] * 257, torch.tensor([1.0]), "scales"),
    ],
)
def test_spoilt_int8_values_are_refused(
    write_tensors: Write, integers: list[int], scales: torch.Tensor, message: str
) -> None:
    n = len(integers)
    tensors = {
        "w.indices": torch.arange(n).to(torch.uint16),
        "w.blocks": int32(0, n),
        "w.values": torch.tensor(integers, dtype=torch.int8),
        "w.scales": scales,
    }
    with pytest.raises(DeltaError, match=message):
        read_delta(write_tensors(tensors), {"w": (300,)}, "add", "int8")


@pytest.mark.parametrize("shape", [(4 * 65_536,), (2**40,) * 8, (1,), (0,), ()])
def test_a_shape_that_the_file_was_not_made_for_is_refused(
    small_tensors: Tensors, write_tensors: Write, shape: tuple[int, ...]
) -> None:
    with pytest.raises(DeltaError):
        read_delta(write_tensors(small_tensors), {**SHAPES, "w": shape}, "add", "float16")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("multiply", "float16"), ("add", "float64"), ("set", "int8"), ("add", "int8"), ("add", "float32")],
)
def test_a_kind_or_dtype_that_the_file_does_not_have_is_refused(
    small_tensors: Tensors, write_tensors: Write, kind: str, dtype: str
) -> None:
    with pytest.raises(DeltaError):
        read_delta(write_tensors(small_tensors), SHAPES, kind, dtype)


def test_no_parameters_at_all_are_refused(write_raw: Write) -> None:
    with pytest.raises(DeltaError, match="changes nothing"):
        read_delta(write_raw({}), {}, "add", "float16")


def entry(dtype: str = "U8", shape: Any = (1,), offsets: Any = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header",
    [
        b'{"b.values":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001,
        b'{"b.values":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b.values":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        {"../../x": entry()},
        {"w.values": entry(shape=[0, 2**60], offsets=[0, 0])},
    ],
    ids=["nested", "twice", "path", "absurd shape"],
)
def test_a_hostile_header_is_refused(write_raw: Write, header: Any) -> None:
    with pytest.raises(FormatError):
        read_delta(write_raw(header, b"\x01"), SHAPES, "add", "float16")


def outcome(path: Path, data: bytes, value_dtype: str) -> Delta | None:
    """The delta that the bytes hold, None where they are refused; any other exception fails the test."""
    path.write_bytes(data)
    try:
        return read_delta(path, SHAPES, "add", value_dtype)
    except FormatError:
        return None


@pytest.mark.parametrize("value_dtype", ["float16", "int8"])
def test_flipped_bits_are_refused_or_change_only_data(small_delta: Delta, tmp_path: Path, value_dtype: str) -> None:
    sound = delta_bytes(Delta(small_delta.parameters, "add", value_dtype))
    data_start = 8 + int.from_bytes(sound[:8], "little")
    refused = 0
    for position in range(len(sound)):
        for mask in (1, 8, 128):
            spoilt = bytearray(sound)
            spoilt[position] ^= mask
            found = outcome(tmp_path / "delta.safetensors", bytes(spoilt), value_dtype)
            refused += found is None
            if found is not None:
                assert position >= data_start, f"byte {position} of the header was flipped unnoticed"
                check_delta(found)
    assert refused >= 3 * data_start


@pytest.mark.parametrize("value_dtype", ["float16", "int8"])
def test_every_truncation_and_every_trailing_byte_is_refused(
    small_delta: Delta, tmp_path: Path, value_dtype: str
) -> None:
    sound = delta_bytes(Delta(small_delta.parameters, "add", value_dtype))
    path = tmp_path / "delta.safetensors"
    assert outcome(path, sound, value_dtype) is not None
    for length in range(len(sound)):
        assert outcome(path, sound[:length], value_dtype) is None
    assert outcome(path, sound + b"\x00", value_dtype) is None
