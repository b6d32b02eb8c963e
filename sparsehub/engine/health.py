"""Whether the engine takes work."""

from __future__ import annotations

from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.generation.generator import Generator
from sparsehub.engine.model_loop import ModelLoop
from sparsehub.errors import UnhealthyError


class EngineHealth:
    """Asked by `Engine.healthy`, and by `InputProcessor` before it queues rows. generator: None where there is none."""

    def __init__(self, arena: ArenaManager, loop: ModelLoop, generator: Generator | None):
        self._arena, self._loop, self._generator = arena, loop, generator

    @property
    def ok(self) -> bool:
        """Whether the base weights are known, `stop` was not called, and every started thread still runs."""
        generates = self._generator is None or self._generator.takes_work
        return self._arena.swap.healthy and self._loop.takes_work and generates

    def check(self) -> None:
        """Raise `UnhealthyError` where no work is taken."""
        if not self.ok:
            raise UnhealthyError("the engine takes no more work", fix="restart it")
