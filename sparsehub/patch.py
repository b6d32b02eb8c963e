"""A delta made ready for one arena, as the engine applies it: positions, values to add, base values to put back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.backbone import Arena, Backbone, Slot
from sparsehub.delta import Delta, value_dtypes
from sparsehub.errors import BackboneMismatchError, DeltaError
from sparsehub.kernels import gather, position_dtype, scatter_add_, scatter_copy_


@dataclass(frozen=True)
class Segment:
    """The part of a patch that belongs to one buffer of the arena, on the buffer's device."""

    dtype: torch.dtype  # of the buffer
    positions: Tensor  # [k] int32 or int64, sorted
    values: Tensor  # [k] float32 to add, or in the buffer's dtype to set
    base: Tensor  # [k] in the buffer's dtype: what is there without the patch


@dataclass(frozen=True)
class Patch:
    """A delta bound to an arena: `apply_patch` and `restore_patch` switch a task on and off."""

    segments: tuple[Segment, ...]  # one a dtype
    value_kind: str  # `add` or `set`

    @functools.cached_property
    def nnz(self) -> int:
        return sum(len(segment.positions) for segment in self.segments)

    @property
    def nbytes(self) -> int:
        return sum(s.positions.nbytes + s.values.nbytes + s.base.nbytes for s in self.segments)


@dataclass(frozen=True)
class PatchLayout:
    """A delta laid out for an arena, in host memory: what residency keeps of a task that is not on the device."""

    parts: Mapping[torch.dtype, tuple[Tensor, Tensor]]  # by the arena's dtype: positions and values of a `Segment`
    value_kind: str  # `add` or `set`

    @property
    def nnz(self) -> int:
        return sum(len(positions) for positions, _ in self.parts.values())

    @property
    def nbytes(self) -> int:
        return sum(positions.nbytes + values.nbytes for positions, values in self.parts.values())


Read = Callable[[Tensor, Tensor], Tensor]
"""A buffer of the arena and positions in it, on its device; returns the base values there."""


def make_patch(backbone: Backbone, delta: Delta) -> Patch:
    """The patch of a delta. No other patch may be applied, since the base values are read.

    Raises `BackboneMismatchError` or `DeltaError` where the delta does not fit the arena.
    """
    return bind(lay_out(backbone.arena, delta), backbone.arena)


def lay_out(arena: Arena, delta: Delta) -> PatchLayout:
    """Turn positions inside parameters into positions inside the arena's buffers.

    Raises `BackboneMismatchError` or `DeltaError` where the delta does not fit the arena.
    """
    slots = {name: _slot(arena, name, delta) for name in delta.parameters}
    dtypes = sorted({slot.dtype for slot in slots.values()}, key=str)
    return PatchLayout({dtype: _part(arena, dtype, slots, delta) for dtype in dtypes}, delta.value_kind)


def bind(layout: PatchLayout, arena: Arena, read: Read = gather) -> Patch:
    """Move a layout to the arena's device and read the base values."""
    segments = []
    for dtype, (positions, values) in layout.parts.items():
        buffer = arena.buffers[dtype]
        there = positions.to(buffer.device, non_blocking=True)
        segments.append(Segment(dtype, there, values.to(buffer.device, non_blocking=True), read(buffer, there)))
    return Patch(tuple(segments), layout.value_kind)


def new_values(segment: Segment, value_kind: str) -> Tensor:
    """[k] in the buffer's dtype: what applying writes at the segment's positions, bit for bit."""
    if value_kind == "set":
        return segment.values
    return (segment.base.float() + segment.values).to(segment.dtype)


def refuse_overflow(arena: Arena, patch: Patch) -> None:
    """Raise `DeltaError`, which names the parameter, where a patch makes a finite weight infinite or no number."""
    for segment in patch.segments:
        _refuse_overflow(arena, segment, new_values(segment, patch.value_kind))


def _refuse_overflow(arena: Arena, segment: Segment, becomes: Tensor) -> None:
    wrong = torch.nonzero(~becomes.isfinite() & segment.base.isfinite()).flatten()
    if len(wrong) == 0:
        return
    first = int(segment.positions[wrong[0]])
    inside = (name for name, s in arena.slots.items() if s.dtype == segment.dtype and 0 <= first - s.offset < s.numel)
    raise DeltaError(
        f"the delta makes {next(inside)!r} larger than {segment.dtype} can hold",
        found=f"{len(wrong)} entries, the first becomes {float(becomes[wrong[0]])}",
        expected=f"at most {torch.finfo(segment.dtype).max:g}",
        fix="give the delta a smaller weight, or load the backbone with dtype bfloat16 or float32",
    )


def _slot(arena: Arena, name: str, delta: Delta) -> Slot:
    slot, part = arena.slots.get(name), delta.parameters[name]
    if slot is None or slot.shape != part.shape:
        raise BackboneMismatchError(
            f"the delta changes {name!r}, which this backbone lacks or has in another shape",
            found=slot.shape if slot else "no such parameter",
            expected=part.shape,
        )
    if delta.value_kind == "set" and slot.dtype != value_dtypes[delta.value_dtype]:
        raise DeltaError(
            f"{name!r}: `set` values need the backbone in the dtype they were extracted in",
            found=slot.dtype,
            expected=delta.value_dtype,
            fix=f"load the backbone with dtype {delta.value_dtype}: --dtype {delta.value_dtype}",
        )
    return slot


def _part(arena: Arena, dtype: torch.dtype, slots: dict[str, Slot], delta: Delta) -> tuple[Tensor, Tensor]:
    names = sorted((name for name, slot in slots.items() if slot.dtype == dtype), key=lambda name: slots[name].offset)
    places = [slots[name].offset for name in names]
    if len(set(places)) != len(places):
        raise DeltaError("the delta names two parameters that share one place (tied weights)", found=", ".join(names))
    positions = torch.cat([delta.parameters[name].indices + slots[name].offset for name in names])
    values = torch.cat([delta.parameters[name].values for name in names])
    values = values.float() if delta.value_kind == "add" else values.to(dtype)
    return positions.to(position_dtype(arena.buffers[dtype])), values


def apply_patch(arena: Arena, patch: Patch) -> None:
    """Change the arena to the task's weights.

    Raises `IndexError` where memory has damaged positions: those outside the arena are left out, here and by
    `restore_patch`.
    """
    write = scatter_add_ if patch.value_kind == "add" else scatter_copy_
    for segment in patch.segments:
        write(arena.buffers[segment.dtype], segment.positions, segment.values)


def restore_patch(arena: Arena, patch: Patch) -> None:
    """Put the saved base values back, bit for bit; safe too after an apply that failed half-way.

    Raises `IndexError` where positions are outside the arena, when all others are restored.
    """
    strays: IndexError | None = None
    for segment in patch.segments:
        try:
            scatter_copy_(arena.buffers[segment.dtype], segment.positions, segment.base)
        except IndexError as error:
            strays = error
    if strays is not None:
        raise strays


@contextmanager
def patched(arena: Arena, patch: Patch) -> Iterator[None]:
    """Inside, the arena has the task's weights; it must hold the base ones before, and holds them again afterwards."""
    apply_patch(arena, patch)
    try:
        yield
    finally:
        restore_patch(arena, patch)
