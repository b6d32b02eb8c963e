"""Flips bits in everything that an engine computes with: the places, and what is there."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine import Engine
from sparsehub.engine.resident import Resident
from sparsehub.engine.task_registry import find_task
from sparsehub.kernels import SparseChange

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# of a floating number by its bytes: a mantissa bit that counts, an exponent bit, the sign
BITS = {2: (5, 13, 15), 4: (20, 29, 31)}


def flip(tensor: Tensor, entry: int, bit: int) -> None:
    """Flip one bit of one entry of a contiguous tensor, in place."""
    size = tensor.element_size()
    words = tensor.detach().reshape(-1).view(INTEGERS[size])
    mask = 1 << bit if bit < 8 * size - 1 or size == 1 else -(1 << bit)
    words[entry] ^= mask


def word_of(tensor: Tensor, entry: int) -> int:
    """The bits of one entry of a contiguous tensor, as a whole number: a NaN is not equal to itself."""
    return int(tensor.detach().reshape(-1).view(INTEGERS[tensor.element_size()])[entry])


def resident_of(engine: Engine, name: str) -> Resident:
    """A task's weights on the device."""
    handle = engine._residency.handle(find_task(engine.tasks, name).digest)
    assert handle is not None
    return handle.wait(60)


def _free_entry(engine: Engine, resident: Resident, choices: random.Random) -> tuple[Tensor, int]:
    """An entry of a parameter that the task does not change."""
    (buffer,) = engine.backbone.arena.buffers.values()
    slot = engine.backbone.arena.slots["encoder.layer.0.attention.self.query.weight"]
    changed = set(resident.patch.segments[0].positions.tolist())
    return buffer, choices.choice([p for p in range(slot.offset, slot.offset + slot.numel) if p not in changed])


def _patched_entry(engine: Engine, resident: Resident, choices: random.Random) -> tuple[Tensor, int]:
    (buffer,) = engine.backbone.arena.buffers.values()
    return buffer, choices.choice(resident.patch.segments[0].positions.tolist())


def _any_of(tensor: Tensor, choices: random.Random) -> tuple[Tensor, int]:
    return tensor, choices.randrange(tensor.numel())


def _sparse_values(resident: Resident, choices: random.Random) -> Tensor:
    assert resident.adapter is not None
    parts = [part for part in resident.adapter.parts.values() if isinstance(part, SparseChange)]
    values = choices.choice([part.values for part in parts if part.values is not None])
    assert values is not None
    return values


def _norm_copy(engine: Engine, choices: random.Random) -> Tensor:
    return choices.choice(engine._targets.copies)


Find = Callable[[Engine, Resident, random.Random], tuple[Tensor, int]]
PLACES: Mapping[str, Find] = {
    "base block": _free_entry,
    "patched position": _patched_entry,
    "saved base value": lambda _, r, c: _any_of(r.patch.segments[0].base, c),
    "value": lambda _, r, c: _any_of(r.patch.segments[0].values, c),
    "adapter weights": lambda _, r, c: _any_of(_sparse_values(r, c), c),
    "head": lambda _, r, c: _any_of(c.choice(r.head.parameters), c),  # type: ignore[union-attr]
    "norm copy": lambda e, _, c: _any_of(_norm_copy(e, c), c),
}
# Whole numbers: any bit of them.
NUMBERS: Mapping[str, Find] = {
    "positions": lambda _, r, c: _any_of(r.patch.segments[0].positions, c),
    "address table": lambda _, r, c: _any_of(r.adapter.addresses, c),  # type: ignore[union-attr]
    "columns": lambda _, r, c: _any_of(
        next(p.columns for p in r.adapter.parts.values() if isinstance(p, SparseChange) and p.columns is not None),  # type: ignore[union-attr]
        c,
    ),
    "module's buffer": lambda e, _, c: _any_of(next(iter(e.backbone.module.buffers())), c),
}


def setting(package: Any, backbone: Any) -> Any:
    """A package in memory that sets the values that it added, on this backbone."""
    parts = {}
    for name, part in package.delta.parameters.items():
        base = backbone.arena.view(name).reshape(-1)[part.indices].float()
        parts[name] = ParameterDelta(part.shape, part.indices, (base + part.values).to(backbone.dtype))
    dtype = str(backbone.dtype).removeprefix("torch.")
    record = dataclasses.replace(package.manifest.delta, value_kind="set", value_dtype=dtype)
    manifest = dataclasses.replace(package.manifest, name=f"{package.manifest.name}-set", delta=record)
    digest = package.digest[:-3] + "5e7"
    return dataclasses.replace(package, manifest=manifest, digest=digest, delta=Delta(parts, "set", dtype))
