"""A task in memory: laid out in host memory, and ready to run on the arena's device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.task_registry import TaskInfo, info_of
from sparsehub.package import Package
from sparsehub.package.heads import HeadModel, build_head
from sparsehub.package.manifest import TEXT_GENERATION
from sparsehub.package.reader import check_backbone
from sparsehub.patch import Patch, PatchLayout, Read, bind, lay_out


@dataclass(frozen=True)
class HostTask:
    """What is copied to a device; in pinned memory where there is one. head: by its transformers names."""

    info: TaskInfo
    layout: PatchLayout
    head: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes + sum(tensor.nbytes for tensor in self.head.values())


@dataclass(frozen=True)
class Resident:
    """A task ready to run. adapter: None where its rows cannot be mixed; `why_swap` then says why; head: None for a
    text generation, whose head is the backbone's."""

    info: TaskInfo
    patch: Patch
    adapter: AdapterWeights | None
    why_swap: str | None
    head: HeadModel | None

    @property
    def nbytes(self) -> int:
        """Memory that the task holds on the device."""
        return sum(part.nbytes for part in (self.patch, self.head, self.adapter) if part is not None)


def read_host_task(package: Package, backbone: Backbone) -> HostTask:
    """Lay a package out for a backbone; raises `BackboneMismatchError` or `DeltaError`."""
    check_backbone(package.manifest, backbone)
    layout = lay_out(backbone.arena, package.delta)
    info = info_of(package.manifest, package.digest)
    if backbone.device.type != "cuda":
        return HostTask(info, layout, package.head)
    pinned = {dtype: (p.pin_memory(), v.pin_memory()) for dtype, (p, v) in layout.parts.items()}
    return HostTask(info, PatchLayout(pinned, layout.value_kind), {n: t.pin_memory() for n, t in package.head.items()})


def make_resident(
    host: HostTask, backbone: Backbone, targets: TargetModules, pad_token_id: int, read: Read
) -> Resident:
    """Copy a task to the device and make it ready for both ways of running; raises `FormatError` for a wrong head."""
    with _beside(backbone.device):
        generates = host.info.spec.kind == TEXT_GENERATION
        head = None if generates else build_head(backbone, host.info.spec, host.head, pad_token_id)
        patch = bind(host.layout, backbone.arena, read)
        adapter = make_adapter_weights(targets, backbone.arena, patch)
    if isinstance(adapter, str):
        return Resident(host.info, patch, None, adapter, head)
    return Resident(host.info, patch, adapter, None, head)


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Inside, a GPU works on a stream of its own, beside the running batch; all of it is done when the block ends."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
