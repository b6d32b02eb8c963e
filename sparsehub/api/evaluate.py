"""How good a package is on labelled rows, and against another one; `sparsehub evaluate` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsehub.errors import UsageError
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


def evaluate(
    package: Package,
    split: Split,
    checkpoint: Checkpoint,
    *,
    worst: int = 5,
    against: Package | None = None,
) -> tuple[Evaluation, Evaluation | None, Difference | None]:
    """The evaluation of a package, that of `against`, and how they differ on the same rows.

    split: rows as `load_split` reads them for the package's task. worst: rows to show.
    Raises `BackboneMismatchError`, and `UsageError` where the two tasks differ.
    """
    if against is not None:
        _check_same_task(package, against)
    first = _outputs(package, split, checkpoint)
    found = _evaluation(package, first, worst)
    if against is None:
        return found, None, None
    second = _outputs(against, split, checkpoint)
    return found, _evaluation(against, second, worst), difference(package.manifest.task, first, second)


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
