"""The arena: all floating parameters of a model in one contiguous buffer per dtype, of which they become views.

One index operation on a buffer then changes a whole model, and the memory never moves.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Slot:
    """Where one parameter is in the arena."""

    dtype: torch.dtype  # of the buffer that holds it
    offset: int  # its first entry in that buffer
    shape: tuple[int, ...]
    numel: int  # entries


@dataclass(frozen=True)
class Arena:
    """The parameters of a backbone as flat buffers; patches are applied to it."""

    buffers: dict[torch.dtype, Tensor]  # one [n] tensor a dtype, all on one device
    slots: Mapping[str, Slot]  # by parameter name; tied names share their place

    @property
    def numel(self) -> int:
        """Entries of the backbone; a tied parameter counts once, padding does not count."""
        return sum(numel for _, _, numel in {(s.dtype, s.offset, s.numel) for s in self.slots.values()})

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return next(iter(self.buffers.values())).device

    def move_to_host(self) -> None:
        """Copy the buffers to host memory, in place of those that are elsewhere. Whatever was a view of them stays one:
        the caller has given the parameters memory of their own."""
        for dtype, buffer in self.buffers.items():
            self.buffers[dtype] = _zeros(len(buffer), dtype, torch.device("cpu")).copy_(buffer)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def view(self, name: str) -> Tensor:
        """The parameter's memory, in its own shape."""
        slot = self.slots[name]
        return self.buffers[slot.dtype][slot.offset : slot.offset + slot.numel].view(slot.shape)

    def digest(self) -> str:
        """sha256 over every byte of every buffer: equal before and after, or the weights changed."""
        digest = hashlib.sha256()
        for dtype, buffer in sorted(self.buffers.items(), key=lambda item: str(item[0])):
            digest.update(f"{dtype} {len(buffer)}\n".encode())
            digest.update(buffer.view(torch.uint8).cpu().numpy().data)
        return "sha256:" + digest.hexdigest()


def build_arena(parameters: Mapping[str, nn.Parameter]) -> Arena:
    """Move the parameters into new buffers, on the device where they are.

    parameters: by name, floating, all on one device; tied ones appear under each name as the same object.
    """
    distinct: dict[int, nn.Parameter] = {id(p): p for p in parameters.values()}
    offsets, sizes = _layout(list(distinct.values()))
    device = next(iter(distinct.values())).device
    buffers = {dtype: _zeros(size, dtype, device) for dtype, size in sizes.items()}
    slots = {name: Slot(p.dtype, offsets[id(p)], tuple(p.shape), p.numel()) for name, p in parameters.items()}
    arena = Arena(buffers, slots)
    moved: set[int] = set()
    for name, parameter in parameters.items():
        if id(parameter) not in moved:
            view = arena.view(name)
            view.copy_(parameter.data)
            parameter.data = view  # frees the old storage now: the peak is one parameter above the model
            moved.add(id(parameter))
    return arena


def _zeros(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A buffer of zeros. In host memory it lies on huge pages where there are any: a patch touches most pages."""
    if device.type != "cpu" or size == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel built without them: the pages are small, nothing else changes
    return torch.frombuffer(memory, dtype=dtype)


def _layout(parameters: list[nn.Parameter]) -> tuple[dict[int, int], dict[torch.dtype, int]]:
    offsets: dict[int, int] = {}
    sizes: dict[torch.dtype, int] = {}
    for parameter in parameters:
        step = ALIGNMENT_BYTES // parameter.element_size()
        offsets[id(parameter)] = sizes.get(parameter.dtype, 0)
        sizes[parameter.dtype] = offsets[id(parameter)] + -(-parameter.numel() // step) * step
    return offsets, sizes
