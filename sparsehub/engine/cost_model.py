"""What a batch will cost in each way of running it: a few points measured at start-up, and what was seen since.

    forward(tokens)    a curve through measured points
    switch(entries)  = a + b entries
    sparse part      = c + d tokens + e sum over tasks of entries * ceil(tokens / 16)

Tokens count with their padding. Two running ratios follow the machine: of forwards, learned from batches that needed
nothing else, and of what comes on top in each way of running. A forward that turns out slow is slow in every way, so it
cannot make one of them look better. Predictions and measurements are exported.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SWAP, MIXED, GROUPED = "swap", "mixed", "grouped-swap"
PLAIN = "plain"
LANES = 16  # tokens that one step over an entry serves
_SMOOTHING = 0.1  # weight of the newest batch in the running ratio
_WIDEST_RATIO = 4.0  # one absurd measurement (a suspended process) must not decide for long


@dataclass(frozen=True)
class RowGroup:
    """Rows of one task. tokens: with their padding when they run alone; entries: of the task's delta, 0 for none."""

    tokens: int
    entries: int
    rows: int
    longest: int


@dataclass(frozen=True)
class CalibrationPoints:
    """Measured seconds.

    forward: (tokens, seconds), tokens rising; switch: (entries, seconds) of apply and restore; sparse: (tokens, work,
    seconds), what a mixed forward took beyond the plain one; empty where nothing can be mixed.
    """

    forward: Sequence[tuple[int, float]]
    switch: Sequence[tuple[int, float]]
    sparse: Sequence[tuple[int, float, float]]


@dataclass
class CostModel:
    """Not thread-safe: the model thread predicts and learns. ratios: measured / predicted, of the forward (`plain`) and
    of what comes on top by way of running."""

    points: CalibrationPoints
    ratios: dict[str, float] = field(default_factory=lambda: {PLAIN: 1.0, SWAP: 1.0, MIXED: 1.0, GROUPED: 1.0})

    def __post_init__(self) -> None:
        entries = [p[0] for p in self.points.switch]
        self._switch = _fit([(1.0, n) for n in entries], [p[1] for p in self.points.switch], 2)
        self._sparse = _fit([(1.0, p[0], p[1]) for p in self.points.sparse], [p[2] for p in self.points.sparse], 3)

    def forward(self, tokens: int) -> float:
        """Seconds of a plain forward; beyond the last point by the last slope."""
        curve = self.points.forward
        after = min(max(1, bisect.bisect_left(curve, (tokens, 0.0))), len(curve) - 1)
        (x0, y0), (x1, y1) = curve[after - 1 : after + 1]
        slope = (y1 - y0) / (x1 - x0)
        return y1 + (max(tokens, curve[0][0]) - x1) * (max(0.0, slope) if tokens > x1 else slope)

    def switch(self, entries: int) -> float:
        """Seconds to apply a task and to restore it."""
        once, an_entry = self._switch
        return once + an_entry * entries if entries else 0.0

    def sparse(self, groups: Sequence[RowGroup]) -> float:
        """Seconds of the sparse parts of a mixed batch."""
        once, a_token, a_step = self._sparse
        return once + a_token * padded_tokens(groups) + a_step * work_of(groups)

    def predict(self, mode: str, groups: Sequence[RowGroup], *, there: bool = False) -> float:
        """Seconds of one way of running. there: the first group's task is in the arena already."""
        plain, extra = self._parts(mode, groups, there)
        return plain * self.ratios[PLAIN] + extra * self.ratios[mode]

    def learn(self, mode: str, groups: Sequence[RowGroup], measured: float, *, there: bool = False) -> None:
        """Correct the forward, or what came on top of it, by what a batch took."""
        plain, extra = self._parts(mode, groups, there)
        if extra == 0.0:
            self._move(PLAIN, measured / plain if plain else 1.0)
        else:
            self._move(mode, max(0.0, measured - plain * self.ratios[PLAIN]) / extra)

    def _parts(self, mode: str, groups: Sequence[RowGroup], there: bool) -> tuple[float, float]:
        """Seconds of the forwards, and of what comes on top."""
        if mode == MIXED:
            return self.forward(padded_tokens(groups)), self.sparse(groups)
        switches = [self.switch(group.entries) for group in groups]
        return sum(self.forward(group.tokens) for group in groups), sum(switches[1:] if there else switches)

    def _move(self, which: str, ratio: float) -> None:
        ratio = min(_WIDEST_RATIO, max(1 / _WIDEST_RATIO, ratio))
        self.ratios[which] += _SMOOTHING * (ratio - self.ratios[which])


def padded_tokens(groups: Sequence[RowGroup]) -> int:
    """Tokens of all groups in one batch, each row padded to the longest of all."""
    return sum(group.rows for group in groups) * max(group.longest for group in groups)


def work_of(groups: Sequence[RowGroup]) -> float:
    """What the sparse part grows with: an entry is gone over once for `LANES` tokens."""
    longest = max(group.longest for group in groups)
    return float(sum(group.entries * -(-group.rows * longest // LANES) for group in groups))


def _fit(rows: Sequence[Sequence[float]], seconds: Sequence[float], columns: int) -> list[float]:
    """Coefficients that are not negative, by least squares over each choice of columns: there are three at most."""
    matrix, target = np.array(rows, float).reshape(len(rows), columns), np.array(seconds, float)
    best, least = [0.0] * columns, float((target**2).sum())
    for size in range(1, columns + 1):
        for chosen in itertools.combinations(range(columns), size):
            found = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            error = float(((matrix[:, chosen] @ found - target) ** 2).sum())
            if (found >= 0).all() and error < least:
                least, kept = error, dict(zip(chosen, found.tolist(), strict=True))
                best = [kept.get(column, 0.0) for column in range(columns)]
    return best
