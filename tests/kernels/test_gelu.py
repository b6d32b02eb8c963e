"""The exact GELU against float64, with every instruction set of this machine."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from sparsehub.engine.module_forwards import find_gelus
from sparsehub.kernels import library, native_module
from sparsehub.kernels.gelu import gelu

needs_native = pytest.mark.skipif(not native_module.exports(), reason="needs the native kernels: a C++ compiler")


def right(x: Tensor) -> Tensor:
    return functional.gelu(x.double())


@needs_native
def test_it_is_as_near_as_torchs(instruction_set: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 400_001), torch.logspace(-30, 30, 10_001), -torch.logspace(-30, 30, 10_001)])
    found, expected = gelu(x).double(), right(x)
    torch.testing.assert_close(found, expected, rtol=5e-7, atol=1e-6)  # torch's own is off by as much
    small = x.abs() < 1e-3
    torch.testing.assert_close(found[small], expected[small], rtol=5e-7, atol=0.0)


@needs_native
@given(st.lists(st.floats(width=32), min_size=1, max_size=70))
def test_any_number_by_itself(numbers: list[float]) -> None:
    """What is not finite stays so, and no number depends on those beside it."""
    x = torch.tensor(numbers)
    found, finite = gelu(x), x.isfinite()
    assert torch.equal(found.isfinite(), finite)
    torch.testing.assert_close(found[finite].double(), right(x[finite]), rtol=5e-7, atol=1e-6)
    alone = torch.cat([gelu(one) for one in x.split(1)])
    torch.testing.assert_close(found, alone, rtol=0, atol=0, equal_nan=True)


@needs_native
@pytest.mark.parametrize("shape", [(1,), (15,), (3, 7, 33), (70_001,), (2, 0, 4)])
def test_any_shape(instruction_set: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gelu(x).double(), right(x), rtol=5e-7, atol=1e-6)


@needs_native
def test_what_programs_call_is_the_same() -> None:
    x = torch.randn(1000)
    extension = native_module.extension()
    assert extension is not None and extension.__file__ is not None
    y = torch.empty_like(x)
    call = ctypes.CDLL(extension.__file__).sparsehub_gelu
    call(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(len(x)))
    assert torch.equal(y, gelu(x)) and torch.equal(library.exact_gelu(x), y)
    torch.library.opcheck(torch.ops.sparsehub.exact_gelu.default, (x,))


def test_what_it_does_not_take_is_torchs() -> None:
    for x in (torch.randn(8, dtype=torch.bfloat16), torch.randn(8, 8).t(), torch.randn(8, requires_grad=True)):
        assert torch.equal(gelu(x), functional.gelu(x))
    x = torch.randn(8, requires_grad=True)
    gelu(x).sum().backward()
    assert x.grad is not None


def test_only_the_exact_one_is_found() -> None:
    exact = [nn.GELU(), ACT2FN["gelu"]]
    others = [nn.GELU("tanh"), ACT2FN["gelu_new"], ACT2FN["gelu_python"], ACT2FN["quick_gelu"], nn.SiLU()]
    assert find_gelus(nn.ModuleList([*exact, *others])) == exact
