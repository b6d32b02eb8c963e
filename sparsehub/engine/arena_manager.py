"""The arena manager: everything that reads or changes the backbone's weights goes through it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from sparsehub.backbone import Backbone, reload
from sparsehub.engine.fair_lock import FairLock
from sparsehub.engine.int8_matrix import Int8Digests
from sparsehub.engine.integrity import IntegrityChecker, TensorDigests, same_bits
from sparsehub.engine.integrity_round import BACKBONE, Damage, IntegrityRound, WatchedCopies, WatchedTasks
from sparsehub.engine.resident import BASE, POSITIONS, Resident
from sparsehub.engine.state_cache import StateCache
from sparsehub.engine.swap import Swap
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import SparsehubError, UnhealthyError
from sparsehub.kernels import gather

LOOK_SHARE = 0.01  # of the time, as far as it was foreseen at the start, that integrity checks take
PROOF_SECONDS = 0.02  # how long a load holds the lock at once, for proving what it reads
log = logging.getLogger("sparsehub")


class ArenaManager:
    """Owns what is in the arena: its lock, its swap journal, the task whose patch is applied, and the integrity checks
    of everything that is computed with.

    check_seconds: between two looks at some of it; 0 for none.
    """

    def __init__(self, backbone: Backbone, check_seconds: float):
        self.lock = FairLock()  # held around every use of the model and the arena
        self.swap = Swap(backbone.arena)
        self.checks = self.failures = self.repairs = 0  # integrity checks, for metrics
        self._backbone = backbone
        self._targets: TargetModules | None = None
        self._proved: tuple[WatchedCopies, ...] = ()  # what is looked at before every load
        self._states: StateCache | None = None
        self._checker = IntegrityChecker(backbone.arena)
        buffers = TensorDigests(("a module's buffer", buffer) for buffer in backbone.whole.buffers())
        self._round = IntegrityRound(self._checker, self.swap, buffers)
        self._check_seconds, self._checked = check_seconds, time.monotonic()
        self._all_checked = self._checked
        self._active: TaskHandle | None = None  # whose patch is applied; referenced, so that it is not evicted

    def watch(self, targets: TargetModules, tasks: WatchedTasks, states: StateCache) -> None:
        """Look at what mixed batches have copied of the arena, and at these tasks, too; forget kept states where the
        weights that they were computed with are damaged. Called once, by `Engine`."""
        self._targets, self._round.tasks, self._states = targets, tasks, states
        copies: list[WatchedCopies] = [TensorDigests(("a norm's copy", copy) for copy in targets.copies)]
        if targets.int8 is not None:
            copies.append(Int8Digests(targets.int8))
        self._proved = tuple(copies)
        if targets.packed is not None:
            copies.append(TensorDigests(targets.packed.tensors))
        self._round.copies += copies

    @property
    def bound_seconds(self) -> float:
        """How long damage stays unseen at most, while no single batch takes longer than that; infinite where nothing
        is checked. It grows with what is in memory."""
        if not self._check_seconds:
            return math.inf
        return self._round.cost / (LOOK_SHARE * self._checker.speed) + self._check_seconds

    def read(self, buffer: Tensor, positions: Tensor) -> Tensor:
        """Base values at positions of one of the arena's buffers, for a patch that is being made between two batches.
        The blocks that they are in are proved under the same lock. positions: sorted.

        The patch that is applied is taken out: that, and applying it again for its task's next batch, costs less
        than finding which of its entries the new patch shares.
        """
        parts, nbytes = [], int(PROOF_SECONDS * self._checker.speed)
        for blocks, start, stop in self._checker.spans(buffer.dtype, nbytes):
            edges = torch.tensor([start, stop], dtype=positions.dtype, device=positions.device)
            first, last = torch.searchsorted(positions, edges).tolist()
            if first < last:
                parts.append(self._read_proved(buffer, positions[first:last], blocks))
        return torch.cat(parts) if parts else gather(buffer, positions)

    def _read_proved(self, buffer: Tensor, positions: Tensor, blocks: range) -> Tensor:
        with self.lock:
            if not self.swap.healthy:
                raise UnhealthyError("the base weights are unknown, so no task can be made ready", fix="restart it")
            if buffer.device.type == "cuda":  # this is another stream than the model's
                torch.cuda.current_stream(buffer.device).wait_stream(torch.cuda.default_stream(buffer.device))
            self.swap.to(None)
            if not all(self._checker.is_sound(index, None) for index in blocks):
                self._mend(Damage(BACKBONE))
                if not self.swap.healthy:
                    raise UnhealthyError("the base weights are damaged, so no task can be made ready", fix="restart it")
            values = gather(buffer, positions)
            if buffer.device.type == "cuda":
                torch.cuda.current_stream(buffer.device).synchronize()
            return values

    def prove_copies(self) -> None:
        """See that what mixed batches have copied of the arena is right, before a task is made ready with it."""
        with self.lock:
            damaged = next((found for its in self._proved if (found := its.first_damaged())), None)
            if damaged is not None and self.swap.healthy:
                self._mend(Damage(damaged))

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
        """Unapply the patch in the arena."""
        with self.lock:
            self._unapply()

    def release_idle(self) -> None:
        """Unapply the patch in the arena where its task can be evicted then: no row needs it, and it is not pinned."""
        with self.lock:
            if self._active is not None and self._active.references == 1 and not self._active.pinned:
                self._unapply()

    def _unapply(self) -> None:
        if self.swap.healthy:
            self.swap.to(None)
            self.note_active(())

    def check_if_due(self) -> None:
        """Look at the next weights where it is time. The caller does not hold the lock."""
        if not self._check_seconds or (self._due_seconds() < self._check_seconds and not self.swap.suspect):
            return
        with self.lock:
            due, self._checked = self._due_seconds(), time.monotonic()
            if self.swap.suspect:
                self._check_everything()
            elif self.swap.healthy:
                looked, damage = self._round.look(due * LOOK_SHARE * self._checker.speed)
                self.checks += looked
                if damage is not None:
                    self._mend(damage)

    def suspect(self) -> None:
        """Look at everything before the next batch: an answer was not a number. Not more often than looks come round,
        since inputs can have such answers too. The lock is held."""
        if self._check_seconds and time.monotonic() - self._all_checked >= self.bound_seconds:
            self.swap.suspect = True

    def check_all(self) -> bool:
        """Check all that is computed with, and load what is damaged again; whether the base weights are right
        afterwards."""
        with self.lock:
            if self.swap.healthy or self.swap.suspect:
                self._check_everything()
            return self.swap.healthy

    def _due_seconds(self) -> float:
        return time.monotonic() - self._checked

    def _check_everything(self) -> None:
        self.swap.suspect, self._all_checked = False, time.monotonic()
        self.checks += 1
        if not self.swap.healthy:  # the patch in the arena is damaged, and cannot be taken out
            self._mend(Damage(BACKBONE))
        for damage in self._round.all_damage():
            self._mend(damage)
            if not self.swap.healthy:
                return

    def _mend(self, damage: Damage) -> None:
        """Count and mend damage: a task's is read again from its package, the backbone's from its checkpoint."""
        self.failures += 1
        handle = damage.task
        if handle is None or handle.resident is None:
            log.error("%s in memory are not those of %s; loading them again", damage.part, self._backbone.checkpoint.id)
            self._mend_backbone()
            return
        log.error("%s: its %s in memory are damaged; loading it again", handle.task.reference, damage.part)
        if handle.resident.patch is self.swap.current:
            if damage.part in (POSITIONS, BASE):  # the patch cannot be taken out by itself
                self._mend_backbone()
                return
            self.swap.to(None)
            self.note_active(())
        self._reload(handle)
        self.repairs += 1

    def _mend_backbone(self) -> None:
        """Read the checkpoint again, and every task that was made of weights which it does not have."""
        copies_were_right, mended = self._copies_are_right(), False
        if self._states is not None:
            self._states.clear()  # it is not known since when the weights are damaged
        try:
            reload(self._backbone)
            if self._targets is not None:
                self._targets.copy_again()
            mended = self._checker.check_all(None) and self._copies_are_right()
        except (SparsehubError, OSError) as error:
            log.error("they cannot be loaded again: %s", error)
        finally:
            self.swap.healthy = mended
        if not mended:
            return
        self.swap.reset()
        self.note_active(())
        self.repairs += 1
        log.warning("the base weights are whole again")
        for handle in self._round.tasks.on_device() if self._round.tasks is not None else ():
            resident = handle.resident
            if resident is not None and not (self._is_right(resident) and (copies_were_right or not resident.adapter)):
                log.warning("%s was made of damaged weights; loading it again", handle.task.reference)
                self._reload(handle)

    def _reload(self, handle: TaskHandle) -> None:
        assert self._round.tasks is not None  # it is one of them
        self._round.tasks.reload(handle)

    def _copies_are_right(self) -> bool:
        return all(digests.first_damaged() is None for digests in self._round.copies)

    def _is_right(self, resident: Resident) -> bool:
        """Whether a task is what was made, and was made of the base weights. The arena holds them."""
        buffers = self._backbone.arena.buffers
        return resident.digests.first_damaged() is None and all(
            same_bits(gather(buffers[segment.dtype], segment.positions), segment.base)
            for segment in resident.patch.segments
        )
