"""sparsehub inspect: shows a package on the terminal, or writes its HTML report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsehub.cli.output import progress, show_json, show_table
from sparsehub.cli.packages import HUB
from sparsehub.progress import work

if TYPE_CHECKING:
    from sparsehub.package.delta_stats import Histogram
    from sparsehub.package.summary import PackageSummary


def inspect(
    package: Annotated[str, typer.Argument(help="A package folder, or a task reference in --hub.")],
    hub: Annotated[str | None, HUB] = None,
    parameters: Annotated[bool, typer.Option("--parameters", help="List every changed parameter.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write it as a self-contained HTML page instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show what a package is, what it changes and how good it is. It is validated first."""
    from sparsehub.cli.packages import with_package

    with_package(package, hub, lambda folder: _inspect(folder, parameters, html, as_json))


def _inspect(folder: Path, parameters: bool, html: Path | None, as_json: bool) -> None:
    from sparsehub.cli import present
    from sparsehub.deltafile import DELTA_FILE
    from sparsehub.package import validate_package
    from sparsehub.package.delta_stats import histogram
    from sparsehub.package.summary import summarize
    from sparsehub.package.validation import read_file, validate_stored_delta

    manifest = validate_package(folder)
    package = summarize(manifest)
    if as_json and html is None:
        shown = {"digest": package.digest, "bytes": package.sizes.package}
        show_json({**shown, "manifest": json.loads(manifest.to_bytes())})
        return
    stored = manifest.files.get(DELTA_FILE)
    with work("counting the changes by size"):
        spread = histogram(validate_stored_delta(read_file(folder, DELTA_FILE, stored), manifest)) if stored else None
    if html is not None:
        _write_report(html, package, spread, as_json)
        return
    present.show_package(package)
    present.show_metrics(package)
    present.show_quantised(package)
    present.show_scores(package)
    present.show_training(package)
    if parameters:
        _show_parameters(package)
    else:
        present.show_heat_map(package.changes.heat_map)
    if spread is not None:
        present.show_histogram(spread)


def _write_report(html: Path, package: PackageSummary, spread: Histogram | None, as_json: bool) -> None:
    from sparsehub.files import write_file
    from sparsehub.package.html_report import render_report

    write_file(html, render_report(package, spread).encode())
    if as_json:
        show_json({"digest": package.digest, "page": str(html)})
    else:
        progress(f"wrote {html}")


def _show_parameters(package: PackageSummary) -> None:
    rows = [[name, cell.nnz, f"{cell.density:.3%}"] for name, cell in package.changes.parameters.items()]
    show_table(["parameter", "entries", "density"], rows, "\nwhat changes, by parameter")
