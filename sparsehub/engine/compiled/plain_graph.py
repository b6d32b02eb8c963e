"""A pass of one task's rows as a graph: the backbone, whose Linear maps are the op that is fast for few rows."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from sparsehub.kernels import library


@contextmanager
def linears_as_ops(module: nn.Module) -> Iterator[None]:
    """Inside, the Linear maps of a base model are `library.plain_linear`; the compiler exports it so."""
    linears = [each for each in module.modules() if type(each) is nn.Linear]
    try:
        for linear in linears:
            # Past nn.Module's own attribute setting, as in `MixedBatch`.
            linear.__dict__["forward"] = functools.partial(_linear, linear)
        yield
    finally:
        for linear in linears:
            linear.__dict__.pop("forward", None)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return library.plain_linear(x.contiguous(), module.weight, [] if module.bias is None else [module.bias])
