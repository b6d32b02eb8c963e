"""sparsehub evaluate: how good a package is on labelled rows, where it is wrong, and whether another one is better."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsehub.cli.output import console, fits, progress, show_json, show_table
from sparsehub.cli.packages import HUB, load_reference

if TYPE_CHECKING:
    from sparsehub.api.evaluate import Comparison, Evaluation, ProbeScores
    from sparsehub.training.error_analysis import Difference

SHOWN_LABELS = 8  # of a confusion matrix; of more labels the pairs that are mixed up most
SHOWN_PAIRS = 10
SHOWN_TEXT = 70  # characters of a row


def evaluate() -> Callable[..., None]:
    """Measure a package on labelled rows: scores, confusion matrix, worst rows, and another package beside it."""
    from sparsehub.cli.flags import with_flags
    from sparsehub.training.tables import Layout

    return with_flags(Layout)(_evaluate)


def _evaluate(
    layout: dict[str, Any],
    reference: Annotated[str, typer.Argument(help="A package folder, or a task reference in --hub.")],
    test: Annotated[str, typer.Option(help="Labelled rows: a file as `sparsehub train` reads it.")],
    hub: Annotated[str | None, HUB] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The backbone: a folder or a hub id (default: the package's own).")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the Hugging Face Hub.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="REFERENCE", help="Another package of this task, to compare with.")
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Rows to fit a linear head on the frozen backbone with, as training does, to compare with: those that "
            "the package was trained on.",
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst rows to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """The verb; layout: settings of `Layout`, as they were given."""
    from sparsehub.api.evaluate import evaluate as measure
    from sparsehub.backbone import open_checkpoint
    from sparsehub.settings import Naming, errors_named
    from sparsehub.training.data import load_split
    from sparsehub.training.field_checks import RENAMING
    from sparsehub.training.tables import Layout

    package = load_reference(reference, hub)
    other = None if against is None else load_reference(against, hub)
    with errors_named(Naming("evaluate", lambda setting: f"--{setting}")):
        task, how = package.manifest.task, Layout(**layout)
        split = load_split(task, test, how, progress, way=RENAMING)
        rows = None if probe is None else load_split(task, probe, how, progress, "probe", RENAMING)
    record = package.manifest.backbone
    checkpoint = open_checkpoint(backbone or record.id, revision or (None if backbone else record.revision or None))
    result = measure(package, split, checkpoint, worst=worst, against=other, probe_rows=rows)
    if as_json:
        show_json(_all_as_json(result))
        return
    _show_scores(result.found, result.against, result.probe)
    _show_gap("the other", result.difference)
    _show_gap("the probe", None if result.probe is None else result.probe.difference)
    _show_confusion(result.found)
    _show_worst(result.found)


def _all_as_json(result: Comparison) -> dict[str, Any]:
    against, probe = result.against, result.probe
    return {
        **_as_json(result.found),
        "against": None if against is None else _as_json(against),
        "difference": _gap(result.difference),
        "probe": None if probe is None else dataclasses.asdict(probe),
    }


def _as_json(found: Evaluation) -> dict[str, Any]:
    manifest = found.package.manifest
    return {
        "task": f"{manifest.name}@{manifest.version}",
        "digest": found.package.digest,
        "rows": found.rows,
        "metrics": dict(found.metrics),
        "labels": list(manifest.task.labels),
        "confusion": None if found.confusion is None else found.confusion.tolist(),
        "worst": [dataclasses.asdict(row) for row in found.worst],
    }


def _gap(gap: Difference | None) -> dict[str, Any] | None:
    return None if gap is None else dataclasses.asdict(gap)


def _show_gap(other: str, gap: Difference | None) -> None:
    if gap is None:
        return
    verdict = "more than chance" if gap.p < 0.05 else "chance alone explains it"
    counts = f"better on {gap.better} rows than {other}, worse on {gap.worse}"
    console.print(f"[dim]{counts}: {verdict} (p = {gap.p:.3g}, {gap.test})[/]", highlight=False)


def _show_scores(found: Evaluation, second: Evaluation | None, probe: ProbeScores | None) -> None:
    """The package, the other one, the probe, and what the package's own test split had."""
    manifest = found.package.manifest
    lines = {f"{manifest.name}@{manifest.version}": found.metrics}
    if second is not None:
        other = second.package.manifest
        name = f"{other.name}@{other.version}"
        lines[name if name not in lines else f"{name} ({second.package.digest[:19]})"] = second.metrics
    if probe is not None:
        lines[f"probe, fitted on {probe.fitted_on:,} rows"] = probe.metrics
    for name, row in _stated(manifest.metrics, manifest.training.get("baselines")).items():
        lines[name] = row
    columns = list(found.metrics)
    rows = [[name, *(f"{row[c]:.4f}" if c in row else "" for c in columns)] for name, row in lines.items()]
    show_table([f"{found.rows:,} rows", *columns], rows, drop=columns[:0:-1])


def _stated(metrics: Mapping[str, Any], baselines: Any) -> dict[str, Mapping[str, float]]:
    """What the package says of its own test split: of itself and of the baselines."""
    found: dict[str, Mapping[str, float]] = {}
    if metrics.get("test"):
        found["stated: its own test split"] = metrics["test"]
    stated = baselines.get("test") if isinstance(baselines, Mapping) else None
    for name, row in (stated if isinstance(stated, Mapping) else {}).items():
        if isinstance(row, Mapping):
            found[f"stated: {name} there"] = row
    return found


def _show_confusion(found: Evaluation) -> None:
    from sparsehub.training.error_analysis import most_confused

    labels, matrix = found.package.manifest.task.labels, found.confusion
    if matrix is None:
        return
    columns = ["is / taken for", *labels]
    rows = [[label, *map(int, matrix[i])] for i, label in enumerate(labels)]
    if len(labels) <= SHOWN_LABELS and fits(columns, rows):
        show_table(columns, rows, "\nconfusion matrix")
        return
    pairs = most_confused(matrix, labels, SHOWN_PAIRS)
    show_table(["is", "taken for", "rows"], [list(pair) for pair in pairs], "\nmixed up most often")


def _show_worst(found: Evaluation) -> None:
    rows = [[row.expected, row.given, f"{row.loss:.2f}", _short(found, row.row)] for row in found.worst]
    if rows:
        show_table(["is", "taken for", "loss", "row"], rows, "\nthe worst rows")


def _short(found: Evaluation, row: Mapping[str, Any]) -> str:
    from sparsehub.training.split_results import row_text

    text = row_text(found.package.manifest.task, row)
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 3] + "..."
