"""Loading a task: its package is read into host memory, then copied to the device and made ready to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparsehub.backbone import Backbone
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.layer_stack import BEFORE
from sparsehub.engine.resident import HostTask, Resident, device_digests, host_digests
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.task_registry import Task, info_of
from sparsehub.errors import (
    BackboneMismatchError,
    DeltaError,
    EngineError,
    IntegrityError,
    RequestError,
    SparsehubError,
    UsageError,
)
from sparsehub.kernels.openmp import release_threads
from sparsehub.package import Package
from sparsehub.package.heads import build_head
from sparsehub.package.reader import check_backbone
from sparsehub.package.task_spec import NONE
from sparsehub.patch import PatchLayout, bind, lay_out, refuse_overflow


def load_error(task: Task, error: Exception) -> SparsehubError:
    """The error for the rows of a task that could not be loaded. A disk without room or a policy that cannot be read
    is an error of the engine's operator, and not of the caller; what a caller has composed is the caller's."""
    if task.composed and isinstance(error, DeltaError):
        return RequestError(error.problem, found=error.found, expected=error.expected, fix=error.fix)
    if isinstance(error, SparsehubError) and not isinstance(error, UsageError):
        return error
    found = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
    return EngineError(f"{task.reference} cannot be loaded", found=found[:500])


class TaskLoader:
    """Reads packages and makes each a `Resident`; `Residency` calls it in its own threads, beside the running batch."""

    def __init__(self, backbone: Backbone, targets: TargetModules, arena: ArenaManager, pad_token_id: int):
        self._backbone, self._targets, self._arena = backbone, targets, arena
        self._pad_token_id = pad_token_id

    def read(self, task: Task) -> HostTask:
        """Read a task's package into host memory; raises what the read raises, and what `lay_out` raises, and
        `IntegrityError` where its folder holds another package by now."""
        package = task.load()
        if package.digest != task.digest:
            raise IntegrityError(
                f"the package of {task.reference} is another one than when it was registered",
                found=package.digest,
                expected=task.digest,
                fix="put it back, or add it again under a version of its own",
            )
        return self.lay_out(package)

    def lay_out(self, package: Package) -> HostTask:
        """A package in host memory, laid out for this backbone; raises `BackboneMismatchError` or `DeltaError`."""
        check_backbone(package.manifest, self._backbone)
        self._refuse_quantised(package)
        layout = lay_out(self._backbone.arena, package.delta)
        slots = {self._backbone.arena.slots[name] for name in package.delta.parameters}
        info = info_of(package.manifest, package.digest, self._targets.shares_layers(slots))
        if self._backbone.device.type != "cuda":
            return HostTask(info, layout, package.head, host_digests(layout, package.head))
        pinned = {dtype: (p.pin_memory(), v.pin_memory()) for dtype, (p, v) in layout.parts.items()}
        head = {name: tensor.pin_memory() for name, tensor in package.head.items()}
        layout = PatchLayout(pinned, layout.value_kind)
        return HostTask(info, layout, head, host_digests(layout, head))

    def _refuse_quantised(self, package: Package) -> None:
        """Raises `BackboneMismatchError` for quantised weights that tasks trained on the float ones may not run on."""
        base = self._targets.quantised
        if base is not None and not base.allowed:
            raise BackboneMismatchError(
                f"{package.manifest.name} was trained on the backbone's float weights",
                found=f"{base.weights} weights",
                fix="measure what it loses, then allow it with --allow-quantised, or serve with --weights float",
            )

    def place(self, host: HostTask) -> Resident:
        """Copy a task to the device and make it ready for swap and for mixed batches; raises `FormatError` for a head
        that does not fit, and for weights that the backbone's dtype cannot hold."""
        backbone = self._backbone
        with _beside_batches(backbone.device):
            spec = host.info.spec
            head = None if spec.head.type == NONE else build_head(backbone, spec, host.head, self._pad_token_id)
            patch = bind(host.layout, backbone.arena, self._arena.read)
            refuse_overflow(backbone.arena, patch)
            self._arena.prove_copies()
            made = make_adapter_weights(self._targets, backbone.arena, patch)
            adapter, why_swap = (None, made) if isinstance(made, str) else (made, None)
            if (base := self._targets.quantised) is not None and adapter is None:
                raise BackboneMismatchError(
                    f"{host.info.reference} cannot run on {base.weights} weights", found=why_swap
                )
            why_unshared = _why_unshared(self._targets, adapter, why_swap)
            digests = device_digests(patch, adapter, head)
            return Resident(host.info, patch, adapter, why_swap, head, digests, why_unshared)


def _why_unshared(targets: TargetModules, adapter: AdapterWeights | None, why_swap: str | None) -> str | None:
    if adapter is None or targets.layers is None:
        return why_swap or targets.why_no_trunk
    return "it changes what comes before the first layer" if adapter.first == BEFORE else None


@contextmanager
def _beside_batches(device: torch.device) -> Iterator[None]:
    """For work beside the running batch: a GPU does it on a stream of its own, and is done when the block ends; of a
    CPU the threads are given back then, of which the batch has its own."""
    if device.type != "cuda":
        try:
            yield
        finally:
            release_threads()
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
