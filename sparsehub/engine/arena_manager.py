"""The arena's keeper: one lock, one journal, one guard; whoever touches the weights comes through here."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from sparsehub.backbone import Backbone, reload
from sparsehub.engine.fair_lock import FairLock
from sparsehub.engine.integrity import IntegrityChecker
from sparsehub.engine.residency import Residency
from sparsehub.engine.swap import Swap
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import SparsehubError, UnhealthyError
from sparsehub.kernels import gather

log = logging.getLogger("sparsehub")


class ArenaManager:
    """lock: held around every use of the model and the arena; check_seconds: between two looks of the guard, 0: never.

    checks, failures, repairs: counted for whoever watches.
    """

    def __init__(self, backbone: Backbone, check_seconds: float):
        self.lock = FairLock()
        self.swap = Swap(backbone.arena)
        self.checks = self.failures = self.repairs = 0
        self._backbone = backbone
        self._guard = IntegrityChecker(backbone.arena)
        self._check_seconds, self._checked = check_seconds, time.monotonic()
        self._inside: TaskHandle | None = (
            None  # whose patch is in the arena; it is referenced, so that it stays in memory
        )

    def read(self, buffer: Tensor, positions: Tensor) -> Tensor:
        """Base values for a patch that is being made, between two batches.

        The task that is in the arena is taken out: that, and putting it back for its next batch, costs less
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

    def note_inside(self, residency: Residency, handles: list[TaskHandle]) -> None:
        """After a batch: reference the task whose patch was left in the arena, and none else. The lock is held."""
        patch = self.swap.current
        now = next((h for h in handles if h.resident is not None and h.resident.patch is patch), None)
        if patch is not None and now is None:
            return  # the batch did not move it
        if now is not self._inside:
            before, self._inside = self._inside, now
            if now is not None:
                residency.hold(now)
            if before is not None:
                residency.release(before)

    def empty(self, residency: Residency) -> None:
        """Put the base weights back and let go of the task that was in the arena."""
        with self.lock:
            if self.swap.healthy:
                self.swap.to(None)
                self.note_inside(residency, [])

    def check_if_due(self) -> None:
        """Look at one block of the arena where it is time; the lock is not held."""
        if self._check_seconds and time.monotonic() - self._checked >= self._check_seconds:
            self._checked = time.monotonic()
            with self.lock:
                if self.swap.healthy:
                    self._judge(self._guard.check_next(self.swap.current))

    def check_all(self) -> bool:
        """Look at the whole arena; a damaged one is loaded again. Whether it is what it should be now."""
        with self.lock:
            if self.swap.healthy:
                self._judge(self._guard.check_all(self.swap.current))
            return self.swap.healthy

    def _judge(self, sound: bool) -> None:
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
        if self._guard.check_all(None):
            self.swap.reset()
            self.repairs += 1
            log.warning("the base weights are whole again")
