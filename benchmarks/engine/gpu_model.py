"""The decoders of random weights that `benchmarks.engine.gpu` measures, and random tasks on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.models import DENSITY
from sparsehub.backbone import Backbone, Checkpoint
from sparsehub.backbone.arena import Arena, build_arena
from sparsehub.engine.target_modules import TargetModules, find_target_modules
from sparsehub.kernels import position_dtype
from sparsehub.patch import PatchLayout

TASKS = 16
SHAPES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 500},
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A backbone with its modules that are mixed, and tasks in host memory."""

    backbone: Backbone
    targets: TargetModules
    layouts: Sequence[PatchLayout]


def make_model(shape: str, device: torch.device, *, language: bool = False) -> Model:
    """A random decoder in an arena, with an output layer where `language` says so, and the layouts of `TASKS` random
    tasks at 0.5%."""
    from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, use_cache=True)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        whole = (AutoModelForCausalLM if language else AutoModel).from_config(config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    module, language_model = (whole.model, whole) if language else (whole, None)
    checkpoint = Checkpoint(shape, "", Path(), {}, "", "bfloat16")
    bare = Backbone(module, Arena({}, {}), checkpoint, {}, language_model)
    backbone = replace(bare, arena=build_arena(bare.parameters))
    return Model(backbone, find_target_modules(backbone), [random_layout(backbone, seed) for seed in range(TASKS)])


def random_layout(backbone: Backbone, seed: int) -> PatchLayout:
    """0.5% of every parameter, in host memory, pinned where there is a GPU."""
    (buffer,) = backbone.arena.buffers.values()
    generator = torch.Generator(device=buffer.device).manual_seed(seed)
    parts = []
    for slot in sorted(set(backbone.arena.slots.values()), key=lambda slot: slot.offset):
        count = max(1, int(slot.numel * DENSITY))
        places = torch.randint(slot.numel, (count,), generator=generator, device=buffer.device).unique()
        parts.append(places + slot.offset)
    positions = torch.cat(parts).to(position_dtype(buffer)).cpu()
    values = torch.randn(len(positions)) * 0.01
    if buffer.is_cuda:
        positions, values = positions.pin_memory(), values.pin_memory()
    return PatchLayout({buffer.dtype: (positions, values)}, "add")
