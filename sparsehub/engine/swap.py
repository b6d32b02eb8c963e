"""Switching the arena between tasks: restore, then apply, with a journal of what may be in it."""

from __future__ import annotations

from sparsehub.backbone import Arena
from sparsehub.errors import UnhealthyError
from sparsehub.patch import Patch, apply_patch, restore_patch


class Swap:
    """The one writer of an arena. Not thread-safe: the engine holds its lock around every call."""

    def __init__(self, arena: Arena):
        self._arena = arena
        self._journal: Patch | None = None  # what is in the arena, wholly or (after a failure) in part
        self.healthy = True
        self.moves = 0  # times that the arena became another

    @property
    def current(self) -> Patch | None:
        """The patch in the arena; None on the base weights."""
        return self._journal

    def to(self, patch: Patch | None) -> bool:
        """Make `patch` (None: the base weights) the arena's state; returns whether anything had to move.

        When applying fails, the base weights are put back before the error goes on. When that fails too, the arena is
        unknown: `UnhealthyError`, now and at every later call.
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
            except BaseException:
                self._restore()
                raise
        return True

    def reset(self) -> None:
        """The arena was loaded anew: it holds the base weights, whatever was in it."""
        self._journal, self.healthy = None, True

    def _restore(self) -> None:
        if self._journal is None:
            return
        try:
            restore_patch(self._arena, self._journal)
        except BaseException as error:
            self.healthy = False
            raise UnhealthyError("the base weights could not be restored", fix="restart the engine") from error
        self._journal = None
