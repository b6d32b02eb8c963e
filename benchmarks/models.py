"""The models and deltas that the benchmarks work on: random weights, so nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsehub.backbone import Backbone
from sparsehub.delta import Delta, ParameterDelta

SHAPES = {"2 x 64": (2, 64, 2), "6 x 384": (6, 384, 12), "12 x 768": (12, 768, 12)}  # layers, width, heads
SIZES = ("6 x 384", "12 x 768")  # that are measured; the smallest is for what measures no forward pass
DENSITY = 0.005


def save_encoder(size: str, folder: Path) -> None:
    """A random BERT encoder with a pooler, as a checkpoint."""
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    layers, width, heads = SHAPES[size]
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads
    )
    BertModel(config).save_pretrained(folder)


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def linear_delta(backbone: Backbone, seed: int) -> Delta:
    """Random changes at `DENSITY` of all Linear weights; the share of a layer varies log-normally around it."""
    generator = torch.Generator().manual_seed(seed)
    layers = linear_layers(backbone.module)
    weight = {name: layer.weight.numel() * _factor(generator) for name, layer in layers.items()}
    budget = DENSITY * sum(layer.weight.numel() for layer in layers.values())
    parts = {}
    for name, layer in layers.items():
        count = round(budget * weight[name] / sum(weight.values()))
        positions = torch.randperm(layer.weight.numel(), generator=generator)[:count].sort().values
        values = torch.randn(count, generator=generator) * 0.01
        parts[f"{name}.weight"] = ParameterDelta(tuple(layer.weight.shape), positions, values)
    return Delta(parts, "add", "float32")


def _factor(generator: torch.Generator) -> float:
    return float(torch.exp(0.7 * torch.randn((), generator=generator)))


def whole_delta(backbone: Backbone, seed: int, value_dtype: str = "float16") -> Delta:
    """Random changes of `DENSITY` of the whole backbone, as a trained task has them: in matrices, embeddings, norms and
    biases; the share of a parameter varies log-normally around it, and so does that of a matrix's rows."""
    generator = torch.Generator().manual_seed(seed)
    places = {slot: name for name, slot in backbone.arena.slots.items()}
    weight = {name: slot.numel * _factor(generator) for slot, name in places.items()}
    budget, total, parts = DENSITY * backbone.arena.numel, sum(weight.values()), {}
    for name, share in weight.items():
        slot = backbone.arena.slots[name]
        count = min(slot.numel, max(1, round(budget * share / total)))
        chosen = _uneven_positions(slot.shape, count, generator)
        values = (torch.randn(len(chosen), generator=generator) * 0.01).to(getattr(torch, value_dtype))
        parts[name] = ParameterDelta(slot.shape, chosen, values)
    return Delta(parts, "add", value_dtype)


def _uneven_positions(shape: tuple[int, ...], count: int, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.randperm(shape[0], generator=generator)[:count].sort().values
    rows, width = shape[0], shape[1]
    liked = torch.exp(0.7 * torch.randn(rows, generator=generator)).cumsum(0)
    row = torch.searchsorted(liked, torch.rand(count, generator=generator) * liked[-1]).clamp(max=rows - 1)
    return (row * width + torch.randint(width, (count,), generator=generator)).unique()


def load_plain(folder: Path) -> Any:
    """The encoder under plain transformers."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


def lora_model(folder: Path, tasks: int) -> Any:
    """PEFT's model with so many LoRA adapters of rank 8 on all linear layers, `t0`, `t1`, ..."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_plain(folder), config, adapter_name="t0")
    for number in range(1, tasks):
        model.add_adapter(f"t{number}", config)
    return model.eval()
