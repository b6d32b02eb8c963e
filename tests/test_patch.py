from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsehub.backbone import Backbone, Checkpoint
from sparsehub.backbone.arena import build_arena
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.errors import BackboneMismatchError, DeltaError
from sparsehub.kernels import reference
from sparsehub.patch import apply_patch, make_patch, restore_patch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHAPES = {"embed": (13, 8), "layer.weight": (8, 8), "layer.bias": (8,), "norm": (5,)}


def backbone_of(dtypes: Mapping[str, torch.dtype]) -> Backbone:
    """Random parameters of the given dtypes, special numbers among them; `tied` shares the place of `embed`."""
    generator = torch.Generator().manual_seed(1)
    made = {n: nn.Parameter(torch.randn(SHAPES[n], generator=generator).to(d), False) for n, d in dtypes.items()}
    for parameter in made.values():
        parameter.data.view(-1)[:4] = torch.tensor([0.0, -0.0, 1e-8, -6e4])
    made["tied"] = made["embed"]
    checkpoint = Checkpoint("tiny", "", Path(), {}, "", "float32")
    return Backbone(nn.Module(), build_arena(made), checkpoint, {})


def same(dtype: torch.dtype) -> Backbone:
    return backbone_of(dict.fromkeys(SHAPES, dtype))


def mixed() -> Backbone:
    return backbone_of(dict(zip(SHAPES, [torch.float32, torch.bfloat16, torch.float16, torch.bfloat16], strict=True)))


def random_delta(seed: int, kind: str = "add", value_dtype: str = "float32", scale: float = 1.0) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, shape in SHAPES.items():
        numel = torch.Size(shape).numel()
        count = int(torch.randint(0, numel + 1, (), generator=generator))
        if count:
            indices = torch.randperm(numel, generator=generator)[:count].sort().values
            values = (torch.randn(count, generator=generator) * scale).to(DTYPES[value_dtype])
            parts[name] = ParameterDelta(shape, indices, values)
    return Delta(parts, kind, value_dtype)


def expected(backbone: Backbone, delta: Delta) -> dict[str, Tensor]:
    """Every parameter with its part of the delta, through the plain loops."""
    found = {name: backbone.arena.view(name).clone() for name in SHAPES}
    write = reference.scatter_add_ if delta.value_kind == "add" else reference.scatter_copy_
    for name, part in delta.parameters.items():
        write(found[name].view(-1), part.indices, part.values)
    return found


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def check_there_and_back(backbone: Backbone, delta: Delta) -> None:
    before, wanted = backbone.arena.digest(), expected(backbone, delta)
    patch = make_patch(backbone, delta)
    assert backbone.arena.digest() == before
    apply_patch(backbone.arena, patch)
    for name, tensor in wanted.items():
        assert torch.equal(bits(backbone.arena.view(name)), bits(tensor)), name
    restore_patch(backbone.arena, patch)
    assert backbone.arena.digest() == before


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@given(
    seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 1e6]), stored=st.sampled_from([*DTYPES])
)
@settings(max_examples=25, deadline=None)
def test_it_adds_as_the_reference_does_and_goes_back_bit_for_bit(
    dtype: torch.dtype, seed: int, scale: float, stored: str
) -> None:
    check_there_and_back(same(dtype), random_delta(seed, "add", stored, scale))


@pytest.mark.parametrize("stored", DTYPES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_it_sets_exactly_and_goes_back_bit_for_bit(stored: str, seed: int) -> None:
    check_there_and_back(same(DTYPES[stored]), random_delta(seed, "set", stored))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_parameters_of_several_dtypes_in_one_arena(seed: int) -> None:
    check_there_and_back(mixed(), random_delta(seed))


@pytest.mark.parametrize("make", [lambda: same(torch.float32), lambda: same(torch.bfloat16), mixed])
def test_hundreds_of_switches_leave_no_trace(make: object) -> None:
    backbone = make()  # type: ignore[operator]
    before = backbone.arena.digest()
    patches = [make_patch(backbone, random_delta(seed, scale=10.0 ** (seed % 7 - 5))) for seed in range(12)]
    order = torch.randint(0, len(patches), (300,), generator=torch.Generator().manual_seed(0)).tolist()
    applied = {}
    for number in order:
        apply_patch(backbone.arena, patches[number])
        digest = backbone.arena.digest()
        assert applied.setdefault(number, digest) == digest
        restore_patch(backbone.arena, patches[number])
        assert backbone.arena.digest() == before
    assert len(set(applied.values())) > 6


def test_the_module_sees_the_change_because_its_parameters_are_views() -> None:
    backbone = same(torch.float32)
    delta = Delta({"norm": ParameterDelta((5,), torch.tensor([4]), torch.tensor([2.0]))})
    view, before = backbone.arena.view("norm"), backbone.arena.view("norm").clone()
    apply_patch(backbone.arena, make_patch(backbone, delta))
    assert (view - before).tolist() == [0, 0, 0, 0, 2]


def test_restoring_twice_or_before_applying_is_harmless() -> None:
    backbone = same(torch.bfloat16)
    before = backbone.arena.digest()
    patch = make_patch(backbone, random_delta(3))
    for _ in range(2):
        restore_patch(backbone.arena, patch)
        assert backbone.arena.digest() == before


def test_a_patch_counts_its_entries_and_bytes() -> None:
    patch = make_patch(mixed(), random_delta(5))
    assert patch.nnz == random_delta(5).nnz
    parts = [tensor for s in patch.segments for tensor in (s.positions, s.values, s.base)]
    assert patch.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in parts)
    assert {segment.dtype for segment in patch.segments} == {torch.float32, torch.bfloat16, torch.float16}
    assert all(bool((s.positions[1:] > s.positions[:-1]).all()) for s in patch.segments)


@pytest.mark.parametrize(("held", "stored"), [(a, b) for a in DTYPES for b in DTYPES if a != b])
def test_set_values_are_refused_in_another_dtype(held: str, stored: str) -> None:
    with pytest.raises(DeltaError, match=f"`set` values need the backbone in the dtype.*to do: .*{stored}"):
        make_patch(same(DTYPES[held]), random_delta(1, "set", stored))


def test_set_values_are_refused_where_one_parameter_alone_has_another_dtype() -> None:
    backbone = backbone_of({name: torch.float32 if name != "norm" else torch.bfloat16 for name in SHAPES})
    part = ParameterDelta((5,), torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(DeltaError, match="'norm': `set` values"):
        make_patch(backbone, Delta({"norm": part}, "set", "float32"))


def test_one_place_under_two_names_is_refused() -> None:
    part = ParameterDelta((13, 8), torch.tensor([3]), torch.tensor([1.0]))
    with pytest.raises(DeltaError, match=r"share one place \(tied weights\).*embed.*tied"):
        make_patch(same(torch.float32), Delta({"embed": part, "tied": part}))


def test_a_tied_name_alone_changes_the_shared_place() -> None:
    backbone = same(torch.float32)
    part = ParameterDelta((13, 8), torch.tensor([50]), torch.tensor([1.0]))
    before = backbone.arena.view("embed").clone()
    apply_patch(backbone.arena, make_patch(backbone, Delta({"tied": part})))
    assert (backbone.arena.view("embed") - before).count_nonzero() == 1


@pytest.mark.parametrize(("name", "shape"), [("other", (5,)), ("norm", (6,)), ("embed", (8, 13))])
def test_a_parameter_that_the_backbone_lacks_is_refused(name: str, shape: tuple[int, ...]) -> None:
    part = ParameterDelta(shape, torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(BackboneMismatchError, match=f"the delta changes '{name}', which this backbone lacks"):
        make_patch(same(torch.float32), Delta({name: part}))
