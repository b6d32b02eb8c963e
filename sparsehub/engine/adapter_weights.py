"""Adapter weights: a task's patch, cut up by the modules that it changes, as mixed batches add it to its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.backbone import Arena, Slot
from sparsehub.engine.checksum import checksum
from sparsehub.engine.target_modules import CONV1D, TargetModule, TargetModules
from sparsehub.errors import EngineError
from sparsehub.kernels import ScaleShift, SparseChange, compress
from sparsehub.kernels.sparse import for_gpu
from sparsehub.patch import Patch, new_values


@dataclass(frozen=True)
class AdapterWeights:
    """One task's change of every target module that it touches; `MixedBatch` reads it."""

    # by target index: what a Linear or Embedding adds, or the scale and shift that a norm has instead of its own
    parts: Mapping[int, SparseChange | ScaleShift]
    # [targets, ADDRESSES] int64 in host memory: where kernels find the parts, or the backbone's own scales and shifts
    addresses: Tensor
    digest: int  # of `addresses`, which is looked at before every use: a wild address would end the process
    first: int  # the layer at whose input its rows leave those of other tasks (`LayerStack.first_changed`)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return sum(part.nbytes for part in self.parts.values()) + self.addresses.nbytes

    @property
    def table(self) -> Tensor:
        """`addresses`, proved; raises `EngineError` where they are damaged."""
        if checksum([self.addresses]) != self.digest:
            raise EngineError("a task's address table in memory is damaged", fix="send the request again")
        return self.addresses

    def has_true_copies(self) -> bool:
        """Whether what kernels' stand-ins have copied of the parts is still what the parts say."""
        return all(part.has_true_copy() for part in self.parts.values() if isinstance(part, SparseChange))


@dataclass(frozen=True)
class WeightSlice:
    """The part of a patch in one parameter's place of the arena."""

    slot: Slot
    local: Tensor  # [k] int32 or int64: flat positions inside the place
    # [k] float32: new value minus base value, both as the arena's dtype rounds them, so that a mixed row computes with
    # the same weights as a swapped one
    change: Tensor


def make_adapter_weights(targets: TargetModules, arena: Arena, patch: Patch) -> AdapterWeights | str:
    """A patch cut up by target module, for mixed batches; or why it cannot be mixed (`TargetModules.why_not`)."""
    device = targets.device if targets.targets else arena.device
    pieces = list(pieces_of(arena, patch, device))
    problem = targets.why_not({piece.slot for piece in pieces})
    return problem or _by_target(targets, pieces)


def _by_target(targets: TargetModules, pieces: Sequence[WeightSlice]) -> AdapterWeights:
    found: dict[int, dict[str, WeightSlice]] = {}
    for piece in pieces:
        for target, role in targets.uses[piece.slot]:
            found.setdefault(target.index, {})[role] = piece
    parts = {index: _part(targets.targets[index], roles) for index, roles in found.items()}
    addresses = targets.base_addresses()
    for index, part in parts.items():
        addresses[index] = torch.tensor(part.addresses)
    return AdapterWeights(parts, addresses, checksum([addresses]), targets.first_changed(parts))


def pieces_of(arena: Arena, patch: Patch, device: torch.device) -> Iterator[WeightSlice]:
    """A patch cut up by the places of the arena, in their order; places that it does not change are left out. device:
    where the pieces are to be."""
    for segment in patch.segments:
        slots = sorted({s for s in arena.slots.values() if s.dtype == segment.dtype}, key=lambda slot: slot.offset)
        edges = torch.tensor([[slot.offset, slot.offset + slot.numel] for slot in slots])
        edges = edges.to(segment.positions.device, segment.positions.dtype)
        bounds = torch.searchsorted(segment.positions, edges).tolist()
        change = (new_values(segment, patch.value_kind).float() - segment.base.float()).to(device)
        positions = segment.positions.to(device)
        for slot, (first, last) in zip(slots, bounds, strict=True):
            if first < last:
                local = positions[first:last] - slot.offset
                yield WeightSlice(slot, local, change[first:last])


def _part(target: TargetModule, pieces: Mapping[str, WeightSlice]) -> SparseChange | ScaleShift:
    """A target's part, made of the changes of its weight, its bias, or both. pieces: by `weight` and `bias`."""
    weight, bias = pieces.get("weight"), pieces.get("bias")
    if target.base is not None:
        shift = target.base.bias if bias is None else _changed(target.base.bias, bias)
        return ScaleShift(target.base.weight if weight is None else _changed(target.base.weight, weight), shift)
    change = None if bias is None else _changed(torch.zeros(bias.slot.numel, device=bias.change.device), bias)
    if weight is None:
        return SparseChange((0, 0), bias=change)
    return dataclasses.replace(_compressed(weight, transposed=target.kind == CONV1D), bias=change)


def _changed(vector: Tensor | None, piece: WeightSlice) -> Tensor:
    assert vector is not None  # a place that a delta changes has values in the backbone
    result = vector.clone()
    result.index_add_(0, piece.local, piece.change)
    return result


def _compressed(piece: WeightSlice, *, transposed: bool) -> SparseChange:
    """A weight's change as compressed rows of dW [out, in]. transposed: the place is [in, out], as in Conv1D."""
    rows, width = piece.slot.shape
    change = compress(piece.local, piece.change, rows, width, transposed=transposed)
    return for_gpu(change, piece.slot.dtype) if piece.change.is_cuda else change
