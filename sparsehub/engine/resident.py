"""A task in memory: laid out in host memory, and ready to run on the arena's device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.engine.side import Side, make_side
from sparsehub.engine.sites import Sites
from sparsehub.engine.tasks import TaskInfo, info_of
from sparsehub.package import Package
from sparsehub.package.heads import HeadModel, build_head
from sparsehub.package.io import check_backbone
from sparsehub.package.manifest import TEXT_GENERATION
from sparsehub.patch import Layout, Patch, Read, bind, lay_out


@dataclass(frozen=True)
class HostTask:
    """What is copied to a device; in pinned memory where there is one. head: by its transformers names."""

    info: TaskInfo
    layout: Layout
    head: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes + sum(tensor.nbytes for tensor in self.head.values())


@dataclass(frozen=True)
class Resident:
    """A task ready to run. side: None where its rows cannot be mixed; `why_swap` then says why; head: None for a text
    generation, whose head is the backbone's."""

    info: TaskInfo
    patch: Patch
    side: Side | None
    why_swap: str | None
    head: HeadModel | None

    @property
    def nbytes(self) -> int:
        """Memory that the task holds on the device."""
        return sum(part.nbytes for part in (self.patch, self.head, self.side) if part is not None)


def read_host_task(package: Package, backbone: Backbone) -> HostTask:
    """Lay a package out for a backbone; raises `BackboneMismatchError` or `DeltaError`."""
    check_backbone(package.manifest, backbone)
    layout = lay_out(backbone.arena, package.delta)
    info = info_of(package.manifest, package.digest)
    if backbone.device.type != "cuda":
        return HostTask(info, layout, package.head)
    pinned = {dtype: (p.pin_memory(), v.pin_memory()) for dtype, (p, v) in layout.parts.items()}
    return HostTask(info, Layout(pinned, layout.value_kind), {n: t.pin_memory() for n, t in package.head.items()})


def make_resident(host: HostTask, backbone: Backbone, sites: Sites, pad_token_id: int, read: Read) -> Resident:
    """Copy a task to the device and make it ready for both ways of running; raises `FormatError` for a wrong head."""
    with _beside(backbone.device):
        generates = host.info.spec.kind == TEXT_GENERATION
        head = None if generates else build_head(backbone, host.info.spec, host.head, pad_token_id)
        patch = bind(host.layout, backbone.arena, read)
        side = make_side(sites, backbone.arena, patch)
    if isinstance(side, str):
        return Resident(host.info, patch, None, side, head)
    return Resident(host.info, patch, side, None, head)


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
