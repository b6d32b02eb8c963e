"""Which parameters of a backbone are weights of linear layers, and which way round they lie; selection and LoRA ask."""

from __future__ import annotations

from torch import nn


def output_axes(module: nn.Module) -> dict[str, int]:
    """By name, for the weight of every Linear and Conv1D: the dimension that counts its outputs, 0 or 1."""
    from transformers.pytorch_utils import Conv1D

    layers = {
        f"{name}.weight": layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | Conv1D)
    }
    return {name: int(isinstance(layer, Conv1D)) for name, layer in layers.items()}
