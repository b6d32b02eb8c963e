"""A task's changes by site: what its rows add in a mixed batch, made of its patch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.backbone import Arena, Slot
from sparsehub.engine.sites import CONV1D, Site, Sites
from sparsehub.kernels import ScaleShift, SparseChange, compress
from sparsehub.kernels.sparse import for_gpu
from sparsehub.patch import Patch


@dataclass(frozen=True)
class Side:
    """parts: what each touched site has instead of the backbone's, by site; addresses: [sites, ADDRESSES] int64, of the
    parts and of the backbone's own scales and shifts, on the device.
    """

    parts: Mapping[int, SparseChange | ScaleShift]
    addresses: Tensor

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values()) + self.addresses.nbytes


@dataclass(frozen=True)
class Piece:
    """The part of a patch in one place of the arena.

    local: [k] int32 or int64 flat positions inside it; change: [k] float32, what an entry becomes less what it was, in
    the arena's dtype: so a mixed row computes with the same weights as a swapped one, rounding included.
    """

    slot: Slot
    local: Tensor
    change: Tensor


def make_side(sites: Sites, arena: Arena, patch: Patch) -> Side | str:
    """A patch by site; or why it cannot be mixed (`Sites.why_not`)."""
    pieces = list(pieces_of(arena, patch))
    problem = sites.why_not({piece.slot for piece in pieces})
    return problem or _by_site(sites, pieces, next(iter(arena.buffers.values())).device)


def _by_site(sites: Sites, pieces: Sequence[Piece], device: torch.device) -> Side:
    found: dict[int, dict[str, Piece]] = {}
    for piece in pieces:
        for site, role in sites.uses[piece.slot]:
            found.setdefault(site.index, {})[role] = piece
    parts = {index: _part(sites.sites[index], roles) for index, roles in found.items()}
    addresses = sites.base_addresses(device)
    for index, part in parts.items():
        addresses[index] = torch.tensor(part.addresses)
    return Side(parts, addresses)


def pieces_of(arena: Arena, patch: Patch) -> Iterator[Piece]:
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
                local = segment.positions[first:last] - slot.offset
                yield Piece(slot, local, change[first:last])


def _part(site: Site, pieces: Mapping[str, Piece]) -> SparseChange | ScaleShift:
    """What a site has with the changes of its weight, its bias, or both."""
    weight, bias = pieces.get("weight"), pieces.get("bias")
    if site.base is not None:
        shift = site.base.bias if bias is None else _changed(site.base.bias, bias)
        return ScaleShift(site.base.weight if weight is None else _changed(site.base.weight, weight), shift)
    change = None if bias is None else _changed(torch.zeros(bias.slot.numel, device=bias.change.device), bias)
    if weight is None:
        return SparseChange((0, 0), bias=change)
    return dataclasses.replace(_compressed(weight, transposed=site.kind == CONV1D), bias=change)


def _changed(vector: Tensor | None, piece: Piece) -> Tensor:
    assert vector is not None  # a place that a delta changes has values in the backbone
    result = vector.clone()
    result.index_add_(0, piece.local, piece.change)
    return result


def _compressed(piece: Piece, *, transposed: bool) -> SparseChange:
    """By rows of dW [out, in]; transposed: the place is [in, out], as in Conv1D."""
    rows, width = piece.slot.shape
    change = compress(piece.local, piece.change, rows, width, transposed=transposed)
    return for_gpu(change, piece.slot.dtype) if piece.change.is_cuda else change
