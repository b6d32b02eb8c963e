"""Swap: switches the arena from one task to another, with a journal of the patch that may be in it."""

from __future__ import annotations

import contextlib

from sparsehub.backbone import Arena
from sparsehub.errors import EngineError, UnhealthyError
from sparsehub.patch import Patch, apply_patch, restore_patch


class Swap:
    """The only writer of an arena; `BatchRunner`, `ModelRunner` and `ArenaManager` switch through it. Not thread-safe:
    the arena manager's lock is held around every call."""

    def __init__(self, arena: Arena):
        self._arena = arena
        self._journal: Patch | None = None  # the patch in the arena, whole or (after a failure) in part
        self.healthy = True  # whether it is known what is in the arena
        self.suspect = False  # whether a patch was met that memory has damaged; until `ArenaManager` has looked
        self.moves = 0  # how many times the arena's weights have changed

    @property
    def current(self) -> Patch | None:
        """The patch in the arena; None on the base weights."""
        return self._journal

    def to(self, patch: Patch | None) -> bool:
        """Have `patch` (None: the base weights) in the arena; returns whether any weight had to change.

        When applying fails, the base weights are put back before the error goes on. When that fails too, the arena is
        unknown: `UnhealthyError`, now and at every later call. `EngineError` for a patch whose positions point outside
        the arena: memory has damaged them, and writing there would end the process.
        """
        if not self.healthy:
            raise UnhealthyError("the base weights could not be restored", fix="restart the engine")
        if patch is self._journal:
            return False
        self.moves += 1
        self._restore()
        if patch is not None:
            self._journal = patch  # written first: from here on the arena may hold a part of it
            try:
                apply_patch(self._arena, patch)
            except IndexError as error:
                self._leave_out(patch)
                raise EngineError("a task's weights in memory are damaged", fix="send the request again") from error
            except BaseException:
                self._restore()
                raise
        return True

    def reset(self) -> None:
        """Note that the checkpoint was read again: the arena holds the base weights, whatever was in it."""
        self._journal, self.healthy, self.suspect = None, True, False

    def _leave_out(self, patch: Patch) -> None:
        """Take out a patch of which positions outside the arena were left out as it was applied."""
        self.suspect = True
        with contextlib.suppress(IndexError):  # the same are left out again
            restore_patch(self._arena, patch)
        self._journal = None

    def _restore(self) -> None:
        if self._journal is None:
            return
        try:
            restore_patch(self._arena, self._journal)
        except BaseException as error:
            self.healthy, self.suspect = False, self.suspect or isinstance(error, IndexError)
            raise UnhealthyError("the base weights could not be restored", fix="restart the engine") from error
        self._journal = None
