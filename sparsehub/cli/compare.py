"""sparsehub compare: the overlap of several tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from sparsehub.cli.output import console, progress, show_json
from sparsehub.cli.packages import HUB, load_reference
from sparsehub.errors import UsageError

if TYPE_CHECKING:
    from sparsehub.package import Package
    from sparsehub.package.comparison import PackageComparison

_CELL = 7  # columns of a share on its shade
SHARED = "entries that both change, of those that either does (Jaccard index)"
SAME = "of the shared entries: changed in the same direction (chance gives 50%)"


def compare(
    packages: Annotated[list[str], typer.Argument(help="Package folders, or task references in --hub; two or more.")],
    hub: Annotated[str | None, HUB] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also draw the matrices to this PNG file (needs matplotlib).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show the overlap of tasks on one backbone: which entries they share, and whether they agree."""
    from sparsehub.package.comparison import compare_packages

    if len(packages) < 2:
        raise UsageError("one package alone cannot be compared", expected="two or more")
    loaded = [load_reference(reference, hub) for reference in packages]
    found = compare_packages(loaded)
    names, overlaps = found.names, found.overlaps
    if png is not None:
        _draw(png, found)
    if as_json:
        show_json(_as_table(found, loaded))
        return
    jaccards = [[cell.jaccard for cell in row] for row in overlaps]
    highest = max(cell for i, row in enumerate(jaccards) for j, cell in enumerate(row) if i != j)
    _show_matrix(SHARED, names, jaccards, highest)
    _show_matrix(SAME, names, [[cell.sign_agreement for cell in row] for row in overlaps], 1.0)


def _as_table(comparison: PackageComparison, loaded: list[Package]) -> dict[str, Any]:
    names, found = comparison.names, comparison.overlaps
    pairs = [
        {
            "first": names[i],
            "second": names[j],
            "shared": found[i][j].shared,
            "jaccard": found[i][j].jaccard,
            "sign_agreement": found[i][j].sign_agreement,
        }
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    tasks = [
        {"name": name, "digest": package.digest, "entries": package.delta.nnz}
        for name, package in zip(names, loaded, strict=True)
    ]
    return {"tasks": tasks, "pairs": pairs}


def _show_matrix(title: str, names: Sequence[str], matrix: list[list[float]], highest: float) -> None:
    from sparsehub.cli.present import shaded
    from sparsehub.package.units import percent

    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    rows, heads = _headings(names, console.width)
    for name in ["", *heads]:
        table.add_column(escape(name), no_wrap=True, justify="center" if name else "left")
    for i, row in enumerate(matrix):
        cells = ["" if i == j else shaded(percent(cell), cell, highest) for j, cell in enumerate(row)]
        table.add_row(escape(rows[i]), *cells)
    console.print(table)


def _headings(names: Sequence[str], room: int) -> tuple[list[str], list[str]]:
    """The names of rows and columns; where columns of whole names have no room, their numbers."""
    width = max(map(cell_len, names)) + sum(1 + max(_CELL, cell_len(name)) for name in names)
    if width <= room:
        return list(names), list(names)
    return [f"{i} {name}" for i, name in enumerate(names, 1)], [str(i) for i in range(1, len(names) + 1)]


def _draw(png: Path, found: PackageComparison) -> None:
    from sparsehub.extras import require
    from sparsehub.files import write_file

    require("matplotlib", "train")
    from sparsehub.package.plots import draw_matrices

    write_file(png, draw_matrices(list(found.names), found.matrices))
    progress(f"drew {png}")
