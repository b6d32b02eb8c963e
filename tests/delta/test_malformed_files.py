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
        ({"indices": uint16(2, 5, 5, 0, 9)}, "'w': indices are not strictly increasing; found: entry 2"),
        ({"indices": uint16(2, 9, 5, 0, 9)}, "'w': indices are not strictly increasing"),
        ({"indices": uint16(2, 0, 1, 0, 18_928)}, "'w': an index is out of range; found: offset 18928"),
        ({"indices": uint16(4, 0, 1, 0, 9)}, "'b': an index is out of range"),
        ({"counts": int32(1, 2, 1, 2)}, "disagree; found: counts of 1 to 2 in all 6; expected: .* in all 5"),
        ({"counts": int32(1, 2, 1, 0)}, "disagree"),
        ({"counts": int32(1, -1, 3, 2)}, "disagree"),
        ({"counts": int32(2, 2**31 - 1, -(2**31), 4)}, "disagree"),
        ({"counts": int32(0, 3, 1, 1)}, "'b' has no entries"),
        ({"counts": int32(5, 0, 0, 0)}, "'w' has no entries"),
        ({"counts": int32(1, 4)}, r"'counts' .* wrong type or length; found: I32 \[2\]; expected: I32 \[4\]"),
        ({"counts": int32(1, 2, 1, 1, 0)}, "wrong type or length"),
        ({"counts": int32(1, 2, 1, 1).view(2, 2)}, "wrong type or length"),
        ({"counts": torch.tensor([1, 2, 1, 1])}, "wrong type or length"),
        ({"indices": torch.tensor([2, 0, 5, 0, 9], dtype=torch.int16)}, "'indices' .* wrong type or length"),
        ({"indices": uint16(2, 0, 5, 0).view(2, 2)}, "changes nothing"),
        ({"indices": uint16()}, "changes nothing"),
        ({"indices": uint16(2, 0, 5, 0)}, "'values' .* wrong type or length"),
        ({"values": half(1, 2, 3, 4)}, "'values' .* wrong type or length"),
        ({"values": half(1, 2, 3, 4, 5, 6)}, "wrong type or length"),
        ({"values": half(1, 2, 3, 4, 5).view(5, 1)}, "wrong type or length"),
        ({"values": half(1, 2, 3, 4, 5).float()}, r"found: F32 \[5\]; expected: F16 \[5\]"),
        ({"values": half(1, 2, 3, 4, 5).bfloat16()}, "wrong type or length"),
        ({"values": torch.ones(5, dtype=torch.int16)}, "wrong type or length"),
        ({"values": half(1, 2, 3, 4, float("nan"))}, "not finite"),
        ({"values": half(1, 2, 3, 4, float("-inf"))}, "not finite"),
        ({"more": uint16(1)}, "found: counts, indices, more, values"),
        ({"scales": torch.ones(1)}, "found: counts, indices, scales, values; expected: counts, indices, values"),
        ({"values": None}, "found: counts, indices; expected: counts, indices, values"),
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
        "indices": torch.arange(n).to(torch.uint16),
        "counts": int32(n),
        "values": torch.tensor(integers, dtype=torch.int8),
        "scales": scales,
    }
    with pytest.raises(DeltaError, match=message):
        read_delta(write_tensors(tensors), {"w": (300,)}, "add", "int8")


def test_the_groups_of_two_parameters_share_no_scale(write_tensors: Write) -> None:
    tensors = {
        "indices": torch.cat([torch.arange(257), torch.arange(3)]).to(torch.uint16),
        "counts": int32(257, 3),
        "values": torch.full((260,), 2, dtype=torch.int8),
        "scales": torch.tensor([1.0, 10.0, 100.0]),
    }
    delta = read_delta(write_tensors(tensors), {"a": (300,), "b": (3,)}, "add", "int8")
    assert delta.parameters["a"].values.tolist() == [2.0] * 256 + [20.0]
    assert delta.parameters["b"].values.tolist() == [200.0] * 3
    with pytest.raises(DeltaError, match="scales"):
        read_delta(write_tensors({**tensors, "scales": torch.ones(2)}), {"a": (300,), "b": (3,)}, "add", "int8")


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
        b'{"values":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001,
        b'{"values":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"values":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        {"../../x": entry()},
        {"values": entry(shape=[0, 2**60], offsets=[0, 0])},
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
