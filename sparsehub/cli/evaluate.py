"""sparsehub evaluate: how good a package is on labelled rows, where it is wrong, whether another one is better, and
what it loses on quantised weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsehub.cli.choices import one_of
from sparsehub.cli.output import console, fits, progress, show_json, show_table
from sparsehub.cli.packages import HUB, load_reference, with_package
from sparsehub.errors import UsageError
from sparsehub.files import refuse_existing

if TYPE_CHECKING:
    from sparsehub.api.evaluate import Comparison, Evaluation, ProbeScores, QuantisedEvaluation
    from sparsehub.backbone import Checkpoint
    from sparsehub.package import Package
    from sparsehub.training.error_analysis import Difference

QUANTISED_WEIGHTS = ("int8", "fp8", "nf4")  # those of `sparsehub serve --weights`
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
    weights: Annotated[
        str | None,
        one_of(QUANTISED_WEIGHTS, "Measure it on weights of this kind too, as an endpoint with --weights runs it."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the package anew, with the scores on --weights in it and on its card.")
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst rows to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """The verb; layout: settings of `Layout`, as they were given."""
    from sparsehub.api.evaluate import evaluate as measure
    from sparsehub.api.evaluate import quantised_record
    from sparsehub.settings import Naming, errors_named
    from sparsehub.training.data import load_split
    from sparsehub.training.field_checks import RENAMING
    from sparsehub.training.tables import Layout

    if out is not None:
        _check_out(out, weights)
    package = load_reference(reference, hub)
    other = None if against is None else load_reference(against, hub)
    with errors_named(Naming("evaluate", lambda setting: f"--{setting}")):
        task, how = package.manifest.task, Layout(**layout)
        split = load_split(task, test, how, progress, way=RENAMING)
        rows = None if probe is None else load_split(task, probe, how, progress, "probe", RENAMING)
    checkpoint = _checkpoint_of(package, backbone, revision)
    result = measure(package, split, checkpoint, worst=worst, against=other, probe_rows=rows, weights=weights)
    written = None if out is None else _written(reference, hub, out, quantised_record(result, Path(test).name))
    if as_json:
        show_json({**_all_as_json(result), "written": written})
        return
    _show_all(result)
    if written is not None:
        console.print(f"\nwritten to {out}: {written}", highlight=False, markup=False)


def _check_out(out: Path, weights: str | None) -> None:
    """Raises `UsageError` before anything is measured in vain."""
    if weights is None:
        raise UsageError("--out writes scores on quantised weights", fix="say on which: --weights int8")
    refuse_existing(out)


def _checkpoint_of(package: Package, backbone: str | None, revision: str | None) -> Checkpoint:
    """The checkpoint of the backbone that is named, else of the package's own."""
    from sparsehub.backbone import open_checkpoint

    record = package.manifest.backbone
    return open_checkpoint(backbone or record.id, revision or (None if backbone else record.revision or None))


def _show_all(result: Comparison) -> None:
    _show_scores(result.found, result.against, result.probe, result.quantised)
    _show_gap("the other", result.difference)
    _show_gap("the probe", None if result.probe is None else result.probe.difference)
    if (on := result.quantised) is not None:
        _show_gap("on the weights as stored", on.difference, f"on {on.weights} weights: ")
    _show_confusion(result.found)
    _show_worst(result.found)


def _written(reference: str, hub: str | None, out: Path, training: dict[str, Any]) -> str:
    """The digest of the package that is written anew with what its evaluation found."""
    from sparsehub.package import restate_package

    return with_package(reference, hub, lambda folder: restate_package(folder, out, training)).digest


def _all_as_json(result: Comparison) -> dict[str, Any]:
    against, probe, quantised = result.against, result.probe, result.quantised
    return {
        **_as_json(result.found),
        "against": None if against is None else _as_json(against),
        "difference": _gap(result.difference),
        "probe": None if probe is None else dataclasses.asdict(probe),
        "quantised": None if quantised is None else dataclasses.asdict(quantised),
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


def _show_gap(other: str, gap: Difference | None, opening: str = "") -> None:
    from sparsehub.package.describe import gap_text

    if gap is not None:
        text = opening + gap_text(other, gap.better, gap.worse, gap.p, gap.test)
        console.print(f"[dim]{text}[/]", highlight=False)


def _show_scores(
    found: Evaluation,
    second: Evaluation | None,
    probe: ProbeScores | None,
    quantised: QuantisedEvaluation | None = None,
) -> None:
    """The package, the same on quantised weights, the other one, the probe, and what its own test split had."""
    manifest = found.package.manifest
    lines = {f"{manifest.name}@{manifest.version}": found.metrics}
    if quantised is not None:
        lines[f"on {quantised.weights} weights"] = quantised.metrics
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
