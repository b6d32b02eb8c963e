"""The cost model: how long a batch will take in each way of running it.

    forward(tokens)    a curve through measured points; times what a compiled pass, or layer of a trunk, takes of it
    switch(entries)  = a + b entries
    sparse part      = c + d tokens + e sum over tasks of entries * ceil(tokens / 16)
    trunk            = sum over stages of their share of the layers * forward(tokens), and the branches' sparse parts

The points are measured at start-up; tokens count with their padding. Running ratios then follow the machine: one of
forwards, learned from batches that needed nothing else, and one of the additional time in each way of running. A
forward that turns out slow is slow in every way, so it cannot make one of them look better.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SWAP, MIXED, GROUPED, TRUNK = "swap", "mixed", "grouped-swap", "trunk"
PLAIN = "plain"
LANES = 16  # tokens that a kernel computes in one pass over an entry
_SMOOTHING = 0.1  # weight of the newest batch in the running ratios
_WIDEST_RATIO = 4.0  # one absurd measurement (a suspended process) must not decide for long


@dataclass(frozen=True)
class RowGroup:
    """The sizes of one task's rows in a batch, for predictions."""

    tokens: int  # with the padding that they have when they run alone
    entries: int  # of the task's delta; 0 for the plain backbone
    rows: int  # sequences
    longest: int  # tokens of the longest one


@dataclass(frozen=True)
class TrunkSizes:
    """The sizes of a batch that runs as trunk and branches."""

    stages: Sequence[tuple[float, int]]  # (share of the layers, tokens with padding) from branch point to branch point
    branches: Sequence[RowGroup]  # each task's rows, as they are after its branch point


@dataclass(frozen=True)
class CalibrationPoints:
    """What was measured on this machine at start-up (`calibrate.py`)."""

    forward: Sequence[tuple[int, float]]  # (tokens, seconds) of plain forwards, tokens rising
    switch: Sequence[tuple[int, float]]  # (entries, seconds) of applying and restoring a patch
    sparse: Sequence[tuple[int, float, float]]  # (tokens, work, additional seconds) of mixed ones; empty where none is


@dataclass(frozen=True)
class CompiledCurve:
    """What compiled passes take beside eager ones, measured; `CostModel` predicts by it, `PlainPass`,
    `MixedPass` and `LayerPasses` choose."""

    points: Sequence[tuple[int, float]] = ()  # (tokens, compiled / eager seconds), tokens rising
    always: bool = False  # compiled wherever it can be, and not only where it was faster

    def ratio(self, tokens: int) -> float:
        """Seconds of a pass of rows of one task, as a share of the eager ones; 1 where it runs eagerly."""
        if not self.points:
            return 1.0
        sizes, ratios = zip(*self.points, strict=True)
        measured = float(np.interp(tokens, sizes, ratios))
        return measured if self.always else min(1.0, measured)

    def __str__(self) -> str:
        return ", ".join(f"{ratio:.2f} at {tokens} tokens" for tokens, ratio in self.points)

    def used(self, tokens: int) -> bool:
        """Whether a pass runs compiled."""
        return bool(self.points) and (self.always or self.ratio(tokens) < 1.0)


@dataclass
class CostModel:
    """Predicts what batches take, and learns from what they took; `BatchPlanner` uses it. Not thread-safe: the model
    thread alone does both."""

    points: CalibrationPoints
    # measured / predicted seconds: of the forward (`plain`), and of the additional time by way of running
    ratios: dict[str, float] = field(default_factory=lambda: dict.fromkeys((PLAIN, SWAP, MIXED, GROUPED, TRUNK), 1.0))
    compiled: CompiledCurve = CompiledCurve()  # of passes that are not mixed; nothing runs compiled at first
    compiled_mixed: CompiledCurve = CompiledCurve()  # of those that are
    compiled_trunk: CompiledCurve = CompiledCurve()  # of layers of a trunk
    compiled_branches: CompiledCurve = CompiledCurve()  # of those of its branches

    def __post_init__(self) -> None:
        entries = [p[0] for p in self.points.switch]
        self._switch = _fit([(1.0, n) for n in entries], [p[1] for p in self.points.switch], 2)
        self._sparse = _fit([(1.0, p[0], p[1]) for p in self.points.sparse], [p[2] for p in self.points.sparse], 3)

    def forward(self, tokens: int) -> float:
        """Seconds of a plain forward; beyond the last point extrapolated by the last slope."""
        curve = self.points.forward
        after = min(max(1, bisect.bisect_left(curve, (tokens, 0.0))), len(curve) - 1)
        (x0, y0), (x1, y1) = curve[after - 1 : after + 1]
        slope = (y1 - y0) / (x1 - x0)
        return y1 + (max(tokens, curve[0][0]) - x1) * (max(0.0, slope) if tokens > x1 else slope)

    def switch(self, entries: int) -> float:
        """Seconds to apply a patch and to restore it; 0 without entries."""
        once, an_entry = self._switch
        return once + an_entry * entries if entries else 0.0

    def sparse(self, groups: Sequence[RowGroup]) -> float:
        """Seconds of the sparse parts of a mixed batch; 0 without groups."""
        once, a_token, a_step = self._sparse
        return once + a_token * padded_tokens(groups) + a_step * work_of(groups) if groups else 0.0

    def predict(
        self, mode: str, groups: Sequence[RowGroup], *, there: bool = False, trunk: TrunkSizes | None = None
    ) -> float:
        """Seconds of a batch without its heads. mode: `swap`, `mixed`, `grouped-swap` or `trunk`; there: whether the
        first group's task is in the arena already; trunk: the sizes of the batch in that way."""
        plain, extra = self._parts(mode, groups, there, trunk)
        return plain * self.ratios[PLAIN] + extra * self.ratios[mode]

    def learn(
        self,
        mode: str,
        groups: Sequence[RowGroup],
        measured: float,
        *,
        there: bool = False,
        trunk: TrunkSizes | None = None,
    ) -> None:
        """Correct the ratio of the forward, or of the additional time, by the seconds that a batch took without its
        heads."""
        plain, extra = self._parts(mode, groups, there, trunk)
        if extra == 0.0:
            self._move(PLAIN, measured / plain if plain else 1.0)
        else:
            self._move(mode, max(0.0, measured - plain * self.ratios[PLAIN]) / extra)

    def _parts(
        self, mode: str, groups: Sequence[RowGroup], there: bool, trunk: TrunkSizes | None
    ) -> tuple[float, float]:
        """Predicted seconds of the forwards, and of what comes on top: switches, or sparse parts."""
        if mode == TRUNK:
            assert trunk is not None  # where this way is open, its sizes are known
            curves = itertools.chain([self.compiled_trunk], itertools.repeat(self.compiled_branches))
            stages = zip(trunk.stages, curves, strict=False)
            plain = sum(share * self.forward(tokens) * curve.ratio(tokens) for (share, tokens), curve in stages)
            return plain, self.sparse(trunk.branches)
        if mode == MIXED:
            tokens = padded_tokens(groups)
            return self.forward(tokens) * self.compiled_mixed.ratio(tokens), self.sparse(groups)
        switches = [self.switch(group.entries) for group in groups]
        forwards = sum(self.forward(group.tokens) * self.compiled.ratio(group.tokens) for group in groups)
        return forwards, sum(switches[1:] if there else switches)

    def _move(self, which: str, ratio: float) -> None:
        ratio = min(_WIDEST_RATIO, max(1 / _WIDEST_RATIO, ratio))
        self.ratios[which] += _SMOOTHING * (ratio - self.ratios[which])


def padded_tokens(groups: Sequence[RowGroup]) -> int:
    """Tokens of all groups in one batch, each row padded to the longest of all."""
    return sum(group.rows for group in groups) * max(group.longest for group in groups)


def work_of(groups: Sequence[RowGroup]) -> float:
    """What the sparse part's time grows with: entries, each once for every `LANES` tokens."""
    longest = max(group.longest for group in groups)
    return float(sum(group.entries * -(-group.rows * longest // LANES) for group in groups))


def _fit(rows: Sequence[Sequence[float]], seconds: Sequence[float], columns: int) -> list[float]:
    """Coefficients of a least-squares fit that are not negative: the best over all choices of at most three columns."""
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
