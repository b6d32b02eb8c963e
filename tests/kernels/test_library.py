"""The ops of torch that mixed passes are exported by: what the kernels give, with a schema and a fake that are true."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub import kernels
from sparsehub.kernels import Map, ScaleShift, changes_of, library, native_module, segments_of
from tests.kernels.test_sparse import every_kind_of_change, random_change

pytestmark = pytest.mark.skipif(
    native_module.extension() is None, reason="the ops need the native kernels: a C++ compiler"
)
ROWS, LENGTH, INSIDE, OUT, SLOTS = 5, 7, 24, 40, 3
BOUNDS = [(0, 0, 2), (1, 2, 3), (2, 3, 5)]
SEGMENTS = segments_of(BOUNDS, LENGTH)


def tables_of(*modules: kernels.Changes[Any]) -> Tensor:
    """The tables of several modules as one."""
    return torch.cat([changes.tables for changes in modules])


def of_shape(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("maps", [1, 3])
def test_linear_maps(maps: int, biased: bool, transposed: bool) -> None:
    changes = [changes_of([every_kind_of_change(INSIDE, OUT, slot + m) for slot in range(SLOTS)]) for m in range(maps)]
    x, shape = of_shape(ROWS, LENGTH, INSIDE), (INSIDE, OUT) if transposed else (OUT, INSIDE)
    weights, biases = [of_shape(*shape) + m for m in range(maps)], [of_shape(OUT) + m for m in range(maps)]
    arguments = (x, weights, biases if biased else [], tables_of(*changes), SEGMENTS.blocks, [*range(maps)], transposed)
    found = library.mixed_linear(*arguments)
    expected = kernels.linear(
        x,
        [
            Map(w if transposed else w.t(), b if biased else None, its)
            for w, b, its in zip(weights, biases, changes, strict=True)
        ],
        SEGMENTS,
    )
    torch.testing.assert_close(found, torch.stack(expected))
    torch.library.opcheck(torch.ops.sparsehub.mixed_linear.default, arguments)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_linear_maps_of_rows_that_are_made_of_fewer(shared: bool, biased: bool, transposed: bool) -> None:
    """And of rows that are made of themselves."""
    changes = [changes_of([every_kind_of_change(INSIDE, OUT, slot + m) for slot in range(SLOTS)]) for m in range(2)]
    source, rows = of_shape(ROWS - 2, LENGTH, INSIDE), torch.tensor([2, 0, 0, 1, 2])
    x, shape = source[rows], (INSIDE, OUT) if transposed else (OUT, INSIDE)
    weights, biases = [of_shape(*shape) + m for m in range(2)], [of_shape(OUT) + m for m in range(2)]
    common = (weights, biases if biased else [], tables_of(*changes), SEGMENTS.blocks, [0, 1], transposed)
    arguments = (x, source if shared else x, rows, *common)
    torch.testing.assert_close(library.shared_linear(*arguments), library.mixed_linear(x, *common))
    torch.library.opcheck(torch.ops.sparsehub.shared_linear.default, arguments)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("maps", [1, 3])
def test_linear_maps_in_8_bits(maps: int, biased: bool) -> None:
    changes = [changes_of([every_kind_of_change(INSIDE, OUT, slot + m) for slot in range(SLOTS)]) for m in range(maps)]
    x, weights = of_shape(ROWS, LENGTH, INSIDE), [kernels.pack_int8(of_shape(OUT, INSIDE) + m) for m in range(maps)]
    biases = [of_shape(OUT) + m for m in range(maps)]
    own = torch.tensor([weight.addresses for weight in weights])[:, None]
    tables = torch.cat([tables_of(*changes), own], dim=1)
    arguments = (x, biases if biased else [], tables, SEGMENTS.blocks, [*range(maps)], OUT)
    expected = kernels.int8_linear(
        x,
        kernels.quantise_rows(x.view(-1, INSIDE)),
        [
            kernels.Int8Map(weight, b if biased else None, its)
            for weight, b, its in zip(weights, biases, changes, strict=True)
        ],
        SEGMENTS,
    )
    assert torch.equal(library.int8_linear(*arguments), torch.stack(expected))
    torch.library.opcheck(torch.ops.sparsehub.int8_linear.default, arguments)


def test_embeddings() -> None:
    changes = changes_of([random_change(OUT, 11, 0.3, slot, bias=False) for slot in range(SLOTS)])
    ids, weight = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 11, of_shape(11, OUT)
    expected = weight[ids].view(-1, OUT)
    kernels.sparse_lookup_(expected, ids.view(-1), SEGMENTS, changes)
    arguments = (ids, weight, changes.tables, SEGMENTS.blocks, 0)
    torch.testing.assert_close(library.mixed_embedding(*arguments), expected.view(ROWS, LENGTH, OUT))
    torch.library.opcheck(torch.ops.sparsehub.mixed_embedding.default, arguments)


@pytest.mark.parametrize("centered", [False, True])
def test_norms(centered: bool) -> None:
    changes = changes_of([ScaleShift(of_shape(OUT) + s, of_shape(OUT) - s if centered else None) for s in range(SLOTS)])
    x = of_shape(ROWS, LENGTH, OUT)
    norm = kernels.layer_norm if centered else kernels.rms_norm
    arguments = (x, changes.tables, SEGMENTS.blocks, 0, 1e-5, centered)
    torch.testing.assert_close(library.mixed_norm(*arguments), norm(x, SEGMENTS, changes, 1e-5))
    torch.library.opcheck(torch.ops.sparsehub.mixed_norm.default, arguments)
