"""The arena manager: everything that reads or changes the backbone's weights goes through it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from sparsehub.backbone import Backbone, reload
from sparsehub.engine.fair_lock import FairLock
from sparsehub.engine.integrity import IntegrityChecker
from sparsehub.engine.swap import Swap
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import SparsehubError, UnhealthyError
from sparsehub.kernels import gather

log = logging.getLogger("sparsehub")


class ArenaManager:
    """Owns what is in the arena: its lock, its swap journal, the task whose patch is applied, and its integrity checks.

    check_seconds: between two checks of a block of the base weights; 0 for none.
    """

    def __init__(self, backbone: Backbone, check_seconds: float):
        self.lock = FairLock()  # held around every use of the model and the arena
        self.swap = Swap(backbone.arena)
        self.checks = self.failures = self.repairs = 0  # integrity checks, for metrics
        self._backbone = backbone
        self._integrity = IntegrityChecker(backbone.arena)
        self._check_seconds, self._checked = check_seconds, time.monotonic()
        self._active: TaskHandle | None = None  # whose patch is applied; referenced, so that it is not evicted

    def read(self, buffer: Tensor, positions: Tensor) -> Tensor:
        """Base values at positions of one of the arena's buffers, for a patch that is being made between two batches.

        The patch that is applied is taken out: that, and applying it again for its task's next batch, costs less
        than finding which of its entries the new patch shares.
        """
        with self.lock:
            if not self.swap.healthy:
                raise UnhealthyError("the base weights are unknown, so no task can be made ready", fix="restart it")
            self.swap.to(None)
            if buffer.device.type == "cuda":  # this is another stream than the model's
                torch.cuda.current_stream(buffer.device).wait_stream(torch.cuda.default_stream(buffer.device))
            values = gather(buffer, positions)
            if buffer.device.type == "cuda":
                torch.cuda.current_stream(buffer.device).synchronize()
            return values

    def note_active(self, handles: Iterable[TaskHandle]) -> None:
        """Reference the task whose patch a batch has left applied, and no other. Called after every batch, with the
        lock held.

        handles: of the batch's tasks; where none of them is in the arena, the batch has not changed what is.
        """
        patch = self.swap.current
        now = next((h for h in handles if h.resident is not None and h.resident.patch is patch), None)
        if patch is not None and now is None:
            return
        if now is not self._active:
            before, self._active = self._active, now
            if now is not None:
                now.hold()
            if before is not None:
                before.release()

    def release_active(self) -> None:
        """Unapply the patch in the arena so that its task can be evicted."""
        with self.lock:
            if self.swap.healthy:
                self.swap.to(None)
                self.note_active(())

    def check_if_due(self) -> None:
        """Check the next block of the base weights where it is time. The caller does not hold the lock."""
        if self._check_seconds and time.monotonic() - self._checked >= self._check_seconds:
            self._checked = time.monotonic()
            with self.lock:
                if self.swap.healthy:
                    self._judge(self._integrity.check_next(self.swap.current))

    def check_all(self) -> bool:
        """Check all base weights, and load damaged ones again; whether they are right afterwards."""
        with self.lock:
            if self.swap.healthy:
                self._judge(self._integrity.check_all(self.swap.current))
            return self.swap.healthy

    def _judge(self, sound: bool) -> None:
        """Count a check; where it failed, read the checkpoint again."""
        self.checks += 1
        if sound:
            return
        self.failures += 1
        log.error("the base weights in memory are not those of %s; loading them again", self._backbone.checkpoint.id)
        self.swap.healthy = False  # until the opposite is proved
        try:
            reload(self._backbone)
        except (SparsehubError, OSError) as error:
            log.error("they cannot be loaded again: %s", error)
            return
        if self._integrity.check_all(None):
            self.swap.reset()
            self.repairs += 1
            log.warning("the base weights are whole again")
