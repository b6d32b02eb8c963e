"""sparsehub inspect: what a package is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehub.cli.output import progress, show_json, show_table


def inspect(
    package: Annotated[str, typer.Argument(help="A package folder, or a task reference in --hub.")],
    hub: Annotated[str | None, typer.Option(help="The hub of the reference.")] = None,
    parameters: Annotated[bool, typer.Option("--parameters", help="List every changed parameter.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the same as one self-contained page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show what a package is, what it changes and how good it is. Its bytes are proved first."""
    from sparsehub.cli.packages import with_package

    with_package(package, hub, lambda folder: _inspect(folder, parameters, html, as_json))


def _inspect(folder: Path, parameters: bool, html: Path | None, as_json: bool) -> None:
    from sparsehub.cli import present
    from sparsehub.deltafile import DELTA_FILE
    from sparsehub.package import validate_package
    from sparsehub.package.delta_stats import heat_map, histogram, sizes
    from sparsehub.package.validation import read_file, validate_stored_delta

    manifest = validate_package(folder)
    if as_json and html is None:
        package = {"digest": manifest.digest, "bytes": sizes(manifest).package}
        show_json({**package, "manifest": dataclasses.asdict(manifest)})
        return
    map_ = heat_map(manifest)
    spread = histogram(validate_stored_delta(read_file(folder, DELTA_FILE, manifest.files[DELTA_FILE]), manifest))
    if html is not None:
        _write_page(html, manifest, map_, spread, as_json)
        return
    present.show_package(manifest)
    present.show_metrics(manifest)
    present.show_training(manifest)
    if parameters:
        show_table(*_by_parameter(manifest.delta.parameters))
    else:
        present.show_heat_map(map_)
    present.show_histogram(spread)


def _write_page(html: Path, manifest: Any, map_: Any, spread: Any, as_json: bool) -> None:
    from sparsehub.files import write_file
    from sparsehub.package.html_report import html_page

    write_file(html, html_page(manifest, map_, spread).encode())
    if as_json:
        show_json({"digest": manifest.digest, "page": str(html)})
    else:
        progress(f"wrote {html}")


def _by_parameter(parameters: dict[str, Any]) -> tuple[list[str], list[list[Any]], str]:
    import math

    rows = [[name, t.nnz, f"{t.nnz / math.prod(t.shape):.3%}"] for name, t in parameters.items()]
    return ["parameter", "entries", "density"], rows, "\nwhat changes, by parameter"
