"""The product of few rows straight from the weights, against float64, with every instruction set of this machine."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparsehub.kernels import library, native_module

pytestmark = pytest.mark.skipif(not native_module.exports(), reason="needs the native kernels: a C++ compiler")
FEW = {"plain": 2, "avx2": 16, "avx512": 32}  # rows that each takes


def few_rows(x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, *, add: bool) -> bool:
    """What compiled programs call; whether it did something."""
    extension = native_module.extension()
    assert extension is not None and extension.__file__ is not None
    call: Callable[..., int] = ctypes.CDLL(extension.__file__).sparsehub_few_rows
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    its = None if bias is None else pointer(bias.data_ptr())
    ends = (pointer(w.data_ptr()), its, pointer(y.data_ptr()), size(w.shape[0]), ctypes.c_int(add))
    return bool(call(pointer(x.data_ptr()), size(x.shape[0]), size(x.shape[1]), *ends))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("inside", "out"), [(16, 4), (64, 100), (384, 384), (1536, 384)])
def test_it_is_the_product(instruction_set: str, inside: int, out: int, biased: bool, add: bool) -> None:
    w, bias = random(out, inside), random(out) if biased else None
    for rows in range(1, FEW[instruction_set] + 1):
        x, before = random(rows, inside), random(rows, out)
        y = before.clone()
        assert few_rows(x, w, bias, y, add=add)
        right = x.double() @ w.double().T + (0 if bias is None else bias) + (before if add else 0)
        torch.testing.assert_close(y, right.float(), rtol=1e-5, atol=1e-6 * inside)


def test_other_shapes_are_left_alone(instruction_set: str) -> None:
    for rows, inside, out in ((FEW[instruction_set] + 1, 64, 64), (1, 24, 64), (1, 64, 66)):
        y = torch.full((rows, out), 7.0)
        assert not few_rows(random(rows, inside), random(out, inside), None, y, add=False)
        assert bool((y == 7).all())


def test_a_row_that_is_not_finite_stays_so(instruction_set: str) -> None:
    x, y = random(2, 32), torch.empty(2, 8)
    x[1, 5] = float("nan")
    assert few_rows(x, random(8, 32), None, y, add=False)
    assert bool(y[0].isfinite().all()) and bool(y[1].isnan().all())


@pytest.mark.parametrize("biased", [False, True])
def test_the_op_is_true(biased: bool) -> None:
    arguments = (random(3, 5, 32), random(8, 32), [random(8)] if biased else [])
    right = torch.nn.functional.linear(arguments[0], arguments[1], *arguments[2])
    torch.testing.assert_close(library.plain_linear(*arguments), right)
    torch.library.opcheck(torch.ops.sparsehub.plain_linear.default, arguments)
