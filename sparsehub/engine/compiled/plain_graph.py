"""A pass of one task's rows as a graph: the backbone with the ops of `kernels/library.py` that are faster than a
compiler's own code. The compiler exports it so."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.nn import functional

from sparsehub.engine.module_forwards import find_gelus, with_forwards
from sparsehub.kernels import library


def linears_as_ops(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, the Linear maps of a base model are `library.plain_linear`."""
    linears = [each for each in module.modules() if type(each) is nn.Linear]
    return with_forwards({linear: functools.partial(_linear, linear) for linear in linears})


def gelus_as_ops(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, the exact GELUs of a base model are `library.exact_gelu`; a mixed pass's graph has them too."""
    return with_forwards(dict.fromkeys(find_gelus(module), _gelu))


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return library.plain_linear(x.contiguous(), module.weight, [] if module.bias is None else [module.bias])


def _gelu(x: Tensor) -> Tensor:
    return library.exact_gelu(x) if x.is_contiguous() else functional.gelu(x)
