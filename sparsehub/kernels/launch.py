"""Launching a Triton kernel where its tensors are; `triton_ops` does."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], tensor: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first tensor: Triton takes the thread's current one, which is the first GPU
    though the tensors may be on another."""
    with torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext():
        kernel[grid](tensor, *arguments, **constants)
