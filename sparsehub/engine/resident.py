"""A task's weights in memory: read into host memory, and ready to run on the backbone's device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.integrity import TensorDigests
from sparsehub.engine.task_registry import TaskInfo
from sparsehub.package.heads import Head
from sparsehub.patch import Patch, PatchLayout


@dataclass(frozen=True)
class HostTask:
    """A task in host memory (pinned where the device is a GPU): what `TaskLoader` copies to the device."""

    info: TaskInfo
    layout: PatchLayout
    head: Mapping[str, Tensor]  # the head's parameters, by their names in the task's model
    digests: TensorDigests  # of all of it, taken when it was read

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the task holds."""
        return self.layout.nbytes + sum(tensor.nbytes for tensor in self.head.values())


@dataclass(frozen=True)
class Resident:
    """A task on the device, ready to run by swap and, where it has an adapter, in mixed batches."""

    info: TaskInfo
    patch: Patch  # for swap
    adapter: AdapterWeights | None  # for mixed batches; None where the task cannot be mixed
    why_swap: str | None  # why it cannot be mixed; None where it can
    head: Head | None  # None for text generation, which uses the backbone's own output layer
    digests: TensorDigests  # of all of it, taken when it was made
    why_unshared: str | None = None  # why its rows share no layers with those of the same text for other tasks

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that the task holds."""
        return sum(part.nbytes for part in (self.patch, self.head, self.adapter) if part is not None)


# What a damaged piece of a task is called; with the first two its patch cannot be taken out of the arena.
POSITIONS, BASE, VALUES = "positions", "saved base values", "values"
ADAPTER, ADDRESSES, HEAD = "adapter weights", "address table", "head"


def host_digests(layout: PatchLayout, head: Mapping[str, Tensor]) -> TensorDigests:
    """Digests of a task that was just read into host memory."""
    positions = [(POSITIONS, positions) for positions, _ in layout.parts.values()]
    values = [(VALUES, values) for _, values in layout.parts.values()]
    return TensorDigests([*positions, *values, *((HEAD, tensor) for tensor in head.values())])


def device_digests(patch: Patch, adapter: AdapterWeights | None, head: Head | None) -> TensorDigests:
    """Digests of a task that was just made ready on the device."""
    named = [
        (name, tensor)
        for segment in patch.segments
        for name, tensor in ((POSITIONS, segment.positions), (BASE, segment.base), (VALUES, segment.values))
    ]
    if adapter is not None:
        named += [(ADAPTER, tensor) for part in adapter.parts.values() for tensor in part.tensors]
        named.append((ADDRESSES, adapter.addresses))
    if head is not None:
        named += [(HEAD, parameter) for parameter in head.parameters]
    return TensorDigests(named)
