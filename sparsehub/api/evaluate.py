"""How good a package is on labelled rows, and against another one; `sparsehub evaluate` prints it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsehub.errors import UsageError
from sparsehub.package.results import QUANTISED, QuantisedScores, stated
from sparsehub.package.task_spec import EVEN, LINEAR_KINDS, TaskSpec
from sparsehub.training.error_analysis import Difference, JudgedRow, confusion, difference, worst_rows
from sparsehub.training.evaluation import Outputs, outputs_of
from sparsehub.training.metrics import compute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsehub.backbone import Checkpoint
    from sparsehub.package import Package
    from sparsehub.training.data import Split


@dataclass(frozen=True)
class Evaluation:
    """A package's scores on labelled rows, and where it is wrong."""

    package: Package
    rows: int
    metrics: Mapping[str, float]
    confusion: NDArray[Any] | None  # [labels, labels] by expected and given label; None for other kinds
    worst: list[JudgedRow]  # the rows with the largest losses


@dataclass(frozen=True)
class ProbeScores:
    """A linear head on the frozen backbone, fitted on rows that were given, and how the package differs from it."""

    fitted_on: int  # rows
    metrics: Mapping[str, float]
    difference: Difference | None


@dataclass(frozen=True)
class QuantisedEvaluation:
    """A package on quantised weights: its scores there, and how they differ from those on the weights as stored."""

    weights: str  # their kind
    metrics: Mapping[str, float]
    difference: Difference | None  # better: rows on which the quantised weights are better


@dataclass(frozen=True)
class Comparison:
    """What `evaluate` gives: a package's evaluation, and what stands beside it on the same rows."""

    found: Evaluation
    against: Evaluation | None
    difference: Difference | None  # from `against`
    probe: ProbeScores | None
    quantised: QuantisedEvaluation | None = None


def evaluate(
    package: Package,
    split: Split,
    checkpoint: Checkpoint,
    *,
    worst: int = 5,
    against: Package | None = None,
    probe_rows: Split | None = None,
    weights: str | None = None,
) -> Comparison:
    """The evaluation of a package, and beside it that of `against`, of a probe and of the package on quantised weights,
    on the same rows.

    split, probe_rows: rows as `load_split` reads them for the package's task; on the second a probe is fitted as
    training fits it without validation rows. worst: rows to show. weights: of an endpoint's `--weights`, to compare
    with the weights as stored. Raises `BackboneMismatchError`, and `UsageError` where the two tasks differ, the task's
    kind has no probe, or the backbone cannot run on such weights.
    """
    task = package.manifest.task
    if against is not None:
        _check_same_task(package, against)
    if probe_rows is not None:
        _check_has_probe(task)
    first = _outputs(package, split, checkpoint)
    second = None if against is None else _outputs(against, split, checkpoint)
    return Comparison(
        _evaluation(package, first, worst),
        None if against is None or second is None else _evaluation(against, second, worst),
        None if second is None else difference(task, first, second),
        None if probe_rows is None else _probe(task, first, probe_rows, checkpoint),
        None if weights is None else _quantised(package, first, split, checkpoint, weights),
    )


def quantised_record(comparison: Comparison, source: str) -> dict[str, Any]:
    """What a package's `training` says of its evaluation on quantised weights. source: what its rows are called."""
    on = comparison.quantised
    if on is None:
        raise UsageError("the package was not evaluated on quantised weights", fix="say which: weights='int8'")
    found = comparison.found
    gap: dict[str, Any] = {} if on.difference is None else dataclasses.asdict(on.difference)
    scores = QuantisedScores(source, found.rows, dict(found.metrics), dict(on.metrics), **gap)
    known = found.package.manifest.training.get(QUANTISED)
    return {QUANTISED: {**(known if isinstance(known, dict) else {}), on.weights: stated(scores)}}


def _quantised(
    package: Package, first: Outputs, split: Split, checkpoint: Checkpoint, weights: str
) -> QuantisedEvaluation:
    from sparsehub.api.quantised import quantised_outputs

    task, outputs = package.manifest.task, quantised_outputs(package, split, checkpoint, weights)
    metrics = compute(task, outputs.logits, outputs.targets)
    return QuantisedEvaluation(weights, metrics, difference(task, outputs, first))


def _check_has_probe(task: TaskSpec) -> None:
    if task.kind not in LINEAR_KINDS:
        kinds = ", ".join(LINEAR_KINDS)
        raise UsageError("there is no probe to compare a task of this kind with", found=task.kind, expected=kinds)


def _probe(task: TaskSpec, first: Outputs, rows: Split, checkpoint: Checkpoint) -> ProbeScores:
    """The best probe of those that training would fit on the rows. Its labels of several have even thresholds: it has
    no validation rows to choose others by."""
    from sparsehub.backbone import load_backbone
    from sparsehub.backbone.tokenizer import load_tokenizer
    from sparsehub.training.head_candidates import probe_heads
    from sparsehub.training.probe import fit_probe, frozen_features, scores_of

    backbone, tokenizer, tried = load_backbone(checkpoint), load_tokenizer(checkpoint), []
    even = dataclasses.replace(task, thresholds=(EVEN,) * len(task.thresholds))
    for head in probe_heads(task, checkpoint):
        plain = dataclasses.replace(even, head=head)
        frozen = frozen_features(backbone, plain, tokenizer, {"train": rows, "test": first.split})
        tried.append((fit_probe(plain, {"train": frozen["train"]}), frozen["test"]))
    probe, test = min(tried, key=lambda each: each[0].held_out)
    outputs = dataclasses.replace(first, logits=scores_of(probe.fit, test))
    metrics = compute(even, outputs.logits, outputs.targets)
    return ProbeScores(len(rows.rows), metrics, difference(task, first, outputs))


def _check_same_task(package: Package, other: Package) -> None:
    ours, theirs = package.manifest.task, other.manifest.task
    for what in ("kind", "labels", "text_fields", "choice_fields"):
        if getattr(ours, what) != getattr(theirs, what):
            raise UsageError(
                f"{other.manifest.name} and {package.manifest.name} are different tasks: their {what} differ",
                found=getattr(theirs, what),
                expected=getattr(ours, what),
            )


def _outputs(package: Package, split: Split, checkpoint: Checkpoint) -> Outputs:
    from sparsehub.backbone.tokenizer import load_tokenizer
    from sparsehub.package.materialize import native_dtype, task_model_of

    task_model = task_model_of(package, checkpoint, dtype=native_dtype(package))
    return outputs_of(task_model.model, package.manifest.task, load_tokenizer(checkpoint), split)


def _evaluation(package: Package, outputs: Outputs, worst: int) -> Evaluation:
    task = package.manifest.task
    metrics = compute(task, outputs.logits, outputs.targets)
    rows = len(outputs.split.rows)
    return Evaluation(package, rows, metrics, confusion(task, outputs), worst_rows(task, outputs, worst))
