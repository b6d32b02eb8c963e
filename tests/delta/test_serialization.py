from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehub.delta import Delta, ParameterDelta, delta_bytes, read_delta
from sparsehub.delta.serialization import encode_indices, quantise
from sparsehub.deltafile import BLOCK, SCALE_GROUP
from sparsehub.errors import DeltaError

pytestmark = pytest.mark.soak
QUIET = settings()  # as many examples as the profile says
FEW = settings(deadline=None, max_examples=40)


@st.composite
def positions(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A number of entries, up to a few blocks, and sorted positions: many of them at the blocks' borders."""
    near = st.builds(lambda block, step: block * BLOCK + step, st.integers(0, 4), st.integers(-2, 2))
    numel = max(1, draw(st.one_of(st.integers(1, 4 * BLOCK + 2), near)))
    borders = near.filter(lambda p: 0 <= p < numel) if numel > 2 else st.just(0)
    found = draw(st.sets(st.one_of(st.integers(0, numel - 1), borders, st.just(numel - 1)), max_size=40))
    return numel, sorted(found)


@QUIET
@given(positions())
def test_offsets_and_counts_are_what_the_format_says(case: tuple[int, list[int]]) -> None:
    numel, expected = case
    offsets, counts = encode_indices(torch.tensor(expected, dtype=torch.int64), numel)
    assert (offsets.dtype, counts.dtype) == (torch.uint16, torch.int32)
    assert offsets.tolist() == [position % BLOCK for position in expected]
    assert counts.tolist() == [
        sum(position // BLOCK == block for position in expected) for block in range(-(-numel // BLOCK))
    ]


def test_every_entry_of_two_and_a_half_blocks_comes_back(tmp_path: Path) -> None:
    numel = 2 * BLOCK + BLOCK // 2
    assert encode_indices(torch.arange(numel), numel)[1].tolist() == [BLOCK, BLOCK, BLOCK // 2]
    path = tmp_path / "delta.safetensors"
    path.write_bytes(delta_bytes(Delta({"w": ParameterDelta((numel,), torch.arange(numel), torch.ones(numel))})))
    found = read_delta(path, {"w": (numel,)}, "add", "float16").parameters["w"].indices
    assert torch.equal(found, torch.arange(numel))


def test_blocks_without_an_entry_cost_one_count_each() -> None:
    offsets, counts = encode_indices(torch.tensor([5 * BLOCK + 7]), 6 * BLOCK)
    assert offsets.tolist() == [7]
    assert counts.tolist() == [0, 0, 0, 0, 0, 1]


@QUIET
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    st.sampled_from([1, 255, 256, 257, 600]),
)
def test_a_quantised_value_is_within_half_a_step(values: list[float], length: int) -> None:
    original = torch.tensor((values * length)[:length])
    integers, scales = quantise(original)
    assert len(scales) == (length + SCALE_GROUP - 1) // SCALE_GROUP
    assert integers.abs().max() <= 127
    steps = scales.double().repeat_interleave(SCALE_GROUP)[:length]
    error = ((integers.float() * scales.repeat_interleave(SCALE_GROUP)[:length]).double() - original.double()).abs()
    assert bool((error <= steps * 0.50001 + 2e-43).all())


def test_groups_of_values_do_not_share_a_scale() -> None:
    values = torch.cat([torch.full((256,), 1000.0), torch.tensor([0.001])])
    integers, scales = quantise(values)
    assert integers.tolist() == [127] * 257
    assert scales[1] < 1e-5


def test_zeros_are_quantised_to_zeros() -> None:
    integers, scales = quantise(torch.zeros(300))
    assert not integers.any()
    assert not scales.any()


@FEW
@given(
    st.dictionaries(st.sampled_from(["a", "a.b", "layer.0.weight", "ä"]), positions(), min_size=1),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.sampled_from(["add", "set"]),
    st.data(),
)
def test_a_delta_comes_back_from_its_bytes(
    cases: dict[str, tuple[int, list[int]]], value_dtype: str, value_kind: str, data: st.DataObject
) -> None:
    parts = {}
    for name, (numel, indices) in cases.items():
        indices = indices or [numel - 1]
        eighths = data.draw(st.lists(st.integers(-128, 128), min_size=len(indices), max_size=len(indices)))
        parts[name] = ParameterDelta((numel,), torch.tensor(indices), torch.tensor(eighths) / 8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        path.write_bytes(delta_bytes(Delta(parts, value_kind, value_dtype)))
        shapes = {name: part.shape for name, part in parts.items()}
        delta = read_delta(path, shapes, value_kind, value_dtype)
        assert delta_bytes(delta) == path.read_bytes()
    assert (delta.value_kind, delta.value_dtype) == (value_kind, value_dtype)
    for name, part in parts.items():
        assert torch.equal(delta.parameters[name].indices, part.indices)
        assert torch.equal(delta.parameters[name].values.float(), part.values)


def test_an_int8_delta_comes_back_within_half_a_step(tmp_path: Path) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "delta.safetensors"
    path.write_bytes(delta_bytes(Delta({"w": ParameterDelta((1000,), torch.arange(1000), values)}, "add", "int8")))
    found = read_delta(path, {"w": (1000,)}, "add", "int8").parameters["w"].values
    assert found.dtype == torch.float32
    assert 0 < (found - values).abs().max() < values.abs().max() / 200


def test_the_bytes_do_not_depend_on_the_order_of_the_parameters(small_delta: Delta) -> None:
    turned = dataclasses.replace(small_delta, parameters=dict(reversed(small_delta.parameters.items())))
    assert delta_bytes(turned) == delta_bytes(small_delta)


def test_the_file_is_what_the_format_says(
    small_delta: Delta, small_tensors: dict[str, torch.Tensor], write_tensors: Callable[..., Path]
) -> None:
    assert delta_bytes(small_delta) == write_tensors(small_tensors).read_bytes()


def test_an_entry_costs_four_bytes() -> None:
    """A hundred parameters cost no more than one: no parameter has a header of its own."""
    parts = {f"w{i:03}": ParameterDelta((10**4,), torch.arange(0, 10**4, 10), torch.ones(1000)) for i in range(100)}
    whole = {"w": ParameterDelta((10**6,), torch.arange(0, 10**6, 10), torch.ones(10**5))}
    for parameters in (parts, whole):
        assert 400_000 < len(delta_bytes(Delta(parameters))) < 400_000 + 1_000


@pytest.mark.parametrize("value_dtype", ["float16", "int8"])
def test_values_that_overflow_their_dtype_are_refused(value_dtype: str) -> None:
    huge = torch.tensor([1e300], dtype=torch.float64)
    with pytest.raises(DeltaError, match="not finite"):
        delta_bytes(Delta({"w": ParameterDelta((4,), torch.tensor([0]), huge)}, "add", value_dtype))


def test_a_delta_that_could_not_be_read_back_is_not_written() -> None:
    with pytest.raises(DeltaError, match="not strictly increasing"):
        delta_bytes(Delta({"w": ParameterDelta((4,), torch.tensor([2, 1]), torch.ones(2))}))
