"""The order of integrity checks: everything that is computed with has its turn, a little at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sparsehub.engine.integrity import IntegrityChecker, TensorDigests
from sparsehub.engine.resident import ADAPTER
from sparsehub.engine.swap import Swap
from sparsehub.engine.task_handle import TaskHandle

BACKBONE = "the backbone's weights"


class WatchedTasks(Protocol):
    """The tasks on the device, whose weights are looked at too; `Residency` keeps them."""

    def on_device(self) -> Sequence[TaskHandle]:
        """The handles of the tasks that are ready, without references."""

    def reload(self, handle: TaskHandle) -> None:
        """Read a task again from its package; its rows wait for that. The arena's lock is held."""


class WatchedCopies(Protocol):
    """What was made of the backbone at the start, piece by piece."""

    whole_cost: int  # what it costs to look at all pieces, in bytes

    def __len__(self) -> int:
        """How many pieces there are."""

    def cost(self, index: int) -> int:
        """What it costs to look at a piece, in bytes."""

    def damaged(self, index: int) -> str | None:
        """What to call a piece that is not what it was; None where it is."""

    def first_damaged(self) -> str | None:
        """The same of the first piece that is damaged."""


@dataclass(frozen=True)
class Damage:
    """What an integrity check has found; `ArenaManager` mends it."""

    part: str  # what is not what it was, for the log
    task: TaskHandle | None = None  # whose it is; None: the backbone's


class IntegrityRound:
    """Looks at the arena block by block, at what was copied of the backbone at the start, then at the tasks on the
    device, and begins again. Not thread-safe: the arena manager's lock is held around every call.

    tasks: set once there are any.
    """

    def __init__(self, checker: IntegrityChecker, swap: Swap, buffers: TensorDigests):
        self.copies: list[WatchedCopies] = [
            buffers
        ]  # of the backbone: modules' buffers, and what mixed batches read instead of the arena
        self.tasks: WatchedTasks | None = None
        self._checker, self._swap = checker, swap
        self._pieces = self._one_round()

    def look(self, budget: float) -> tuple[int, Damage | None]:
        """Look at the next pieces, up to the first that is damaged; how many they were. budget: what they may cost, in
        bytes; one is always looked at, none twice."""
        looked, spent, most = 0, 0, min(budget, self.cost)
        while looked == 0 or spent < most:
            piece = next(self._pieces, None)
            if piece is None:
                self._pieces = self._one_round()
                continue
            looked, spent = looked + 1, spent + piece[0]
            if piece[1] is not None:
                return looked, piece[1]
        return looked, None

    def all_damage(self) -> Iterator[Damage]:
        """Look at everything now."""
        return (damage for _, damage in self._one_round() if damage is not None)

    @property
    def cost(self) -> int:
        """What a round costs, in bytes."""
        own = sum(self._checker.nbytes(index) for index in range(self._checker.blocks))
        copies = sum(digests.whole_cost for digests in self.copies)
        residents = [handle.resident for handle in self._on_device()]
        return own + copies + sum(resident.digests.whole_cost for resident in residents if resident is not None)

    def _one_round(self) -> Iterator[tuple[int, Damage | None]]:
        """Every piece once: what it cost, in bytes, and what is damaged."""
        for index in range(self._checker.blocks):
            sound = self._checker.is_sound(index, self._swap.current)
            yield self._checker.nbytes(index), None if sound else Damage(BACKBONE)
        for digests in self.copies:
            for piece in range(len(digests)):
                part = digests.damaged(piece)
                yield digests.cost(piece), None if part is None else Damage(part)
        done: set[int] = set()
        while (handle := self._next_task(done)) is not None:
            yield from _pieces_of(handle)

    def _next_task(self, done: set[int]) -> TaskHandle | None:
        """A task that was not looked at in this round, be it loaded since."""
        for handle in self._on_device():
            if id(handle.resident) not in done:
                done.add(id(handle.resident))
                return handle
        return None

    def _on_device(self) -> Sequence[TaskHandle]:
        return () if self.tasks is None else self.tasks.on_device()


def _pieces_of(handle: TaskHandle) -> Iterator[tuple[int, Damage | None]]:
    """The pieces of a task, for as long as it stays; nothing here keeps its weights in memory meanwhile."""
    number = id(handle.resident)
    for piece in range(len(handle.resident.digests) if handle.resident is not None else 0):
        resident = handle.resident
        if resident is None or id(resident) != number:
            return
        part, cost = resident.digests.damaged(piece), resident.digests.cost(piece)
        if part is None and piece == 0 and resident.adapter is not None and not resident.adapter.has_true_copies():
            part = ADAPTER
        del resident
        yield cost, None if part is None else Damage(part, handle)
