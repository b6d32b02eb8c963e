"""What a manifest's `training` says of how a run went and where its task is right: cards, reports and pictures show it.

Training writes it. Anybody may have written what is read, so whatever has another form, or is too large, is left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sparsehub.errors import ManifestError
from sparsehub.files import canonical_json
from sparsehub.package.task_spec import TaskSpec
from sparsehub.schema import build

LEARNING_CURVE, RESULTS, QUANTISED = "learning_curve", "results", "quantised"  # keys of `training`
MAX_POINTS = 200  # of a curve, and of a regression's predictions
MAX_MATRIX = 30  # labels of a confusion matrix; of more labels the pairs that are mixed up most
MAX_LABELS = 200
MAX_PAIRS = 10
MAX_EXAMPLES = 100
MAX_QUANTISED = 16  # kinds of weights
MAX_METRICS = 32
MAX_TEXT = 300  # characters of an example that is written
_LONGEST = 1000  # characters of a text that is shown
_LARGEST = 1e12  # number that is drawn

T = TypeVar("T")
Points = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LearningCurve:
    """How a run went: numbers by epoch, as (epoch, value)."""

    training_loss: Points = ()
    validation_loss: Points = ()
    metric: str = ""  # the one that chose the epoch
    scores: Points = ()  # of that metric, on the validation rows
    kept: float | None = None  # the epoch that the package is of; None where nobody chose one


@dataclass(frozen=True)
class LabelScores:
    """How good a task is at one label; of a token classification at one kind of entity."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # rows, or entities, that have the label


@dataclass(frozen=True)
class MixedUp:
    """Two labels of which one is taken for the other."""

    label: str
    taken_for: str
    rows: int


@dataclass(frozen=True)
class Example:
    """A row, with what it should be and what the task said."""

    text: str
    expected: str
    given: str
    right: bool


@dataclass(frozen=True)
class SplitResults:
    """Where a task is right and wrong on one split; empty is what its kind does not have."""

    split: str
    labels: tuple[LabelScores, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()  # rows by what they are and what they are taken for
    mixed_up: tuple[MixedUp, ...] = ()  # most often first, where the matrix would be too large
    predicted: Points = ()  # regression: (what it is, what was predicted)
    examples: tuple[Example, ...] = ()  # only where whoever trained the task asked for them


@dataclass(frozen=True)
class QuantisedScores:
    """What a task loses on quantised weights: the same rows judged on the backbone's weights and on quantised ones."""

    source: str  # the file of the rows, by its last name
    rows: int
    exact: dict[str, float]  # metrics on the weights as stored
    metrics: dict[str, float]  # on the quantised ones
    better: int = 0  # rows on which quantised weights are better; 0 where rows are not judged by themselves
    worse: int = 0
    p: float = 1.0
    test: str = ""  # which gave p; empty where none was made


def stated(value: LearningCurve | SplitResults | QuantisedScores) -> dict[str, Any]:
    """What `training` holds of it: the fields that are not empty, as JSON gives them back."""
    fields = {name: item for name, item in dataclasses.asdict(value).items() if item not in ("", (), None)}
    found: dict[str, Any] = json.loads(canonical_json(fields))
    return found


def learning_curve_of(training: dict[str, Any]) -> LearningCurve | None:
    """The learning curve in `training`; None where there is none that can be shown."""
    found = _read(LearningCurve, training.get(LEARNING_CURVE))
    if found is None:
        return None
    drawn = (found.training_loss, found.validation_loss, found.scores)
    return found if any(drawn) and all(map(_are_points, drawn)) and _is_small((found.kept or 0.0,)) else None


def results_of(training: dict[str, Any], task: TaskSpec) -> SplitResults | None:
    """Where the task is right and wrong, as `training` says; None where it says nothing that can be shown."""
    found = _read(SplitResults, training.get(RESULTS))
    if found is None or not _are_points(found.predicted):
        return None
    side = len(found.confusion)
    square = side in (0, len(task.labels)) and side <= MAX_MATRIX and all(len(row) == side for row in found.confusion)
    counts = (count for row in found.confusion for count in row)
    few = len(found.labels) <= MAX_LABELS and len(found.mixed_up) <= MAX_PAIRS and len(found.examples) <= MAX_EXAMPLES
    short = all(len(text) <= _LONGEST for text in _texts(found))
    return found if square and few and short and all(0 <= count < _LARGEST for count in counts) else None


def quantised_of(training: dict[str, Any]) -> dict[str, QuantisedScores]:
    """What the task was measured to lose on quantised weights, by their kind; what cannot be shown is left out."""
    given = training.get(QUANTISED)
    if not isinstance(given, dict) or len(given) > MAX_QUANTISED:
        return {}
    read = {str(kind): _read(QuantisedScores, record) for kind, record in given.items()}
    return {kind: its for kind, its in read.items() if its is not None and _can_be_shown(kind, its)}


def _can_be_shown(kind: str, its: QuantisedScores) -> bool:
    texts = (kind, its.source, its.test, *its.exact, *its.metrics)
    numbers = (its.rows, its.better, its.worse, its.p, *its.exact.values(), *its.metrics.values())
    few = len(its.exact) <= MAX_METRICS and len(its.metrics) <= MAX_METRICS
    return few and all(len(text) <= MAX_TEXT for text in texts) and _is_small(numbers)


def _texts(found: SplitResults) -> Iterator[str]:
    """Every text of it: a card may not get longer than a package may hold."""
    yield from (its.label for its in found.labels)
    yield from (text for pair in found.mixed_up for text in (pair.label, pair.taken_for))
    yield from (text for row in found.examples for text in (row.text, row.expected, row.given))


def _read(kind: type[T], stated: Any) -> T | None:
    try:
        return None if stated is None else build(kind, stated, "training", ManifestError)
    except ManifestError:
        return None


def _are_points(points: Points) -> bool:
    return len(points) <= MAX_POINTS and all(len(point) == 2 and _is_small(point) for point in points)


def _is_small(numbers: Iterable[float]) -> bool:
    return all(abs(number) < _LARGEST for number in numbers)
