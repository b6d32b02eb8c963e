"""The exact GELU, for compiled programs and passes on int8 weights: in C++ on a CPU, else torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsehub.kernels import native_module


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's function of x (Hendrycks and Gimpel, arXiv:1606.08415), of any shape.

    Within 1e-6 of the true values, as torch's own is, which every tensor gets that is not contiguous float32 on a CPU
    or needs gradients.
    """
    module: Any = native_module.extension() if x.is_cpu and x.dtype == torch.float32 and x.is_contiguous() else None
    if module is None or (x.requires_grad and torch.is_grad_enabled()):
        return functional.gelu(x)
    y = torch.empty_like(x)
    module.gelu(x.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads())
    return y
