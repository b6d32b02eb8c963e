"""A task's changes by site: what its rows add in a mixed batch, made of its patch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.backbone import Arena, Slot
from sparsehub.engine.sites import CONV1D, Site, Sites
from sparsehub.kernels import ScaleShift, SparseChange
from sparsehub.kernels.sparse import column_dtype
from sparsehub.patch import Patch


@dataclass(frozen=True)
class Side:
    """parts: what each touched site has instead of the backbone's, by site; addresses: [sites, 4] int64, of the parts
    and of the backbone's own scales and shifts, on the device.
    """

    parts: Mapping[int, SparseChange | ScaleShift]
    addresses: Tensor

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values()) + self.addresses.nbytes


@dataclass(frozen=True)
class _Piece:
    """The part of a patch in one place. local: [k] int64 flat positions inside it; change: [k] float32."""

    slot: Slot
    local: Tensor
    change: Tensor


def touched_slots(arena: Arena, patch: Patch) -> set[Slot]:
    """The places that a patch changes."""
    return {piece.slot for piece in _pieces(arena, patch)}


def make_side(sites: Sites, arena: Arena, patch: Patch) -> Side:
    """Every place of the patch must have a site (`Sites.why_not`).

    The change of an entry is what it becomes less what it was, in the arena's dtype: so a mixed row computes with the
    same weights as a swapped one, rounding included.
    """
    found: dict[int, dict[str, _Piece]] = {}
    for piece in _pieces(arena, patch):
        for site, role in sites.uses[piece.slot]:
            found.setdefault(site.index, {})[role] = piece
    parts = {index: _part(sites.sites[index], pieces) for index, pieces in found.items()}
    addresses = sites.base_addresses(next(iter(arena.buffers.values())).device)
    for index, part in parts.items():
        addresses[index] = torch.tensor(part.addresses)
    return Side(parts, addresses)


def _pieces(arena: Arena, patch: Patch) -> Iterator[_Piece]:
    for segment in patch.segments:
        slots = sorted({s for s in arena.slots.values() if s.dtype == segment.dtype}, key=lambda slot: slot.offset)
        edges = torch.tensor([[slot.offset, slot.offset + slot.numel] for slot in slots])
        edges = edges.to(segment.positions.device, segment.positions.dtype)
        bounds = torch.searchsorted(segment.positions, edges).tolist()
        base = segment.base.float()
        becomes = segment.values if patch.value_kind == "set" else (base + segment.values).to(segment.dtype)
        change = becomes.float() - base
        for slot, (first, last) in zip(slots, bounds, strict=True):
            if first < last:
                local = segment.positions[first:last].long() - slot.offset
                yield _Piece(slot, local, change[first:last])


def _part(site: Site, pieces: Mapping[str, _Piece]) -> SparseChange | ScaleShift:
    """What a site has with the changes of its weight, its bias, or both."""
    weight, bias = pieces.get("weight"), pieces.get("bias")
    if site.base is not None:
        shift = site.base.bias if bias is None else _changed(site.base.bias, bias)
        return ScaleShift(site.base.weight if weight is None else _changed(site.base.weight, weight), shift)
    change = None if bias is None else _changed(torch.zeros(bias.slot.numel, device=bias.change.device), bias)
    if weight is None:
        return SparseChange((0, 0), bias=change)
    return dataclasses.replace(_compressed(weight, transposed=site.kind == CONV1D), bias=change)


def _changed(vector: Tensor | None, piece: _Piece) -> Tensor:
    assert vector is not None  # a place that a delta changes has values in the backbone
    result = vector.clone()
    result[piece.local] += piece.change
    return result


def _compressed(piece: _Piece, *, transposed: bool) -> SparseChange:
    """By rows of dW [out, in]; transposed: the place is [in, out], as in Conv1D."""
    rows, columns, change = piece.local // piece.slot.shape[1], piece.local % piece.slot.shape[1], piece.change
    out, inside = piece.slot.shape
    if transposed:
        order = torch.argsort(columns, stable=True)
        rows, columns, change = columns[order], rows[order], change[order]
        out, inside = inside, out
    starts = torch.searchsorted(rows, torch.arange(out + 1, device=rows.device), out_int32=True)
    return SparseChange((out, inside), starts, columns.to(column_dtype(inside)), change.clone())
