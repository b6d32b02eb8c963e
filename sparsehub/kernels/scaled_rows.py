"""Rows scaled before and after a product in 8 bits, for an int8 base: in C++ where it is built, else in torch."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from sparsehub.kernels import native


def scale_rows(x: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """x[i] / size[i] and size[i] = max(max |x[i]|, smallest); NaN throughout a row that has one.

    x: [rows, width] float32, contiguous. Returns [rows, width] and [rows].
    """
    assert x.is_contiguous() and x.dtype == torch.float32 and x.is_cpu
    if (module := _module()) is None:
        sizes = x.abs().amax(-1).clamp_min_(smallest)
        return x / sizes[:, None], sizes
    (rows, width), scaled, sizes = x.shape, torch.empty_like(x), x.new_empty(len(x))
    threads = torch.get_num_threads()
    module.scale_rows(x.data_ptr(), scaled.data_ptr(), sizes.data_ptr(), rows, width, smallest, threads)
    return scaled, sizes


def unscale_rows_(y: Tensor, sizes: Tensor, bias: Tensor | None) -> None:
    """y[i] = y[i] * size[i] + b. y: [rows, width] float32, contiguous; sizes: [rows]; bias: [width] or absent."""
    assert y.is_contiguous() and y.dtype == sizes.dtype == torch.float32 and sizes.shape == y.shape[:1]
    assert bias is None or (bias.is_contiguous() and bias.dtype == torch.float32 and bias.shape == y.shape[1:])
    if (module := _module()) is None:
        y.mul_(sizes[:, None])
        if bias is not None:
            y.add_(bias)
        return
    rows, width = y.shape
    address = 0 if bias is None else bias.data_ptr()
    module.unscale_rows(y.data_ptr(), sizes.data_ptr(), address, rows, width, torch.get_num_threads())


def _module() -> ModuleType | None:
    """The compiled kernels, where they have these two."""
    module = native.extension()
    return module if hasattr(module, "unscale_rows") else None
