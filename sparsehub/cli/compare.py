"""sparsehub compare: how much several tasks have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from sparsehub.cli.output import console, progress, show_json
from sparsehub.errors import UsageError

if TYPE_CHECKING:
    from sparsehub.delta import Overlap
    from sparsehub.package import Package

SHARED = "entries that both change, of those that either does (Jaccard index)"
SAME = "of the shared entries: changed in the same direction (chance gives 50%)"


def compare(
    packages: Annotated[list[str], typer.Argument(help="Package folders, or task references in --hub; two or more.")],
    hub: Annotated[str | None, typer.Option(help="The hub of the references.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw it as this picture (needs matplotlib).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show the overlap of tasks on one backbone: which entries they share, and whether they agree."""
    from sparsehub.cli.packages import open_location
    from sparsehub.delta import overlap
    from sparsehub.hub.loading import load_package

    if len(packages) < 2:
        raise UsageError("one package alone cannot be compared", expected="two or more")
    home = open_location(hub) if hub else None
    loaded = [load_package(reference, home) for reference in packages]
    _check(loaded)
    names = _names(loaded)
    found = [[overlap(a.delta, b.delta) for b in loaded] for a in loaded]
    if png is not None:
        _draw(png, names, found)
    if as_json:
        show_json(_as_table(names, loaded, found))
        return
    jaccards = [[cell.jaccard for cell in row] for row in found]
    highest = max(cell for i, row in enumerate(jaccards) for j, cell in enumerate(row) if i != j)
    _show_matrix(SHARED, names, jaccards, highest)
    _show_matrix(SAME, names, [[cell.sign_agreement for cell in row] for row in found], 1.0)


def _check(loaded: list[Package]) -> None:
    """Overlap means nothing across backbones, and signs nothing where values replace weights."""
    backbones = {package.manifest.backbone.fingerprint: package.manifest.backbone.id for package in loaded}
    if len(backbones) > 1:
        raise UsageError("these tasks are not on one backbone", found=", ".join(backbones.values()))
    replaced = [package.manifest.name for package in loaded if package.delta.value_kind != "add"]
    if replaced:
        raise UsageError("only `add` values have a direction", found=f"`set` values in {', '.join(replaced)}")


def _names(loaded: list[Package]) -> list[str]:
    """Names of tasks; with their versions where a name comes twice."""
    names = [package.manifest.name for package in loaded]
    if len(set(names)) == len(names):
        return names
    return [f"{package.manifest.name}@{package.manifest.version}" for package in loaded]


def _as_table(names: list[str], loaded: list[Package], found: list[list[Overlap]]) -> dict[str, Any]:
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


def _show_matrix(title: str, names: list[str], matrix: list[list[float]], highest: float) -> None:
    from sparsehub.cli.present import shaded
    from sparsehub.package.anatomy import percent

    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ["", *names]:
        table.add_column(escape(name), no_wrap=True, justify="center" if name else "left")
    for i, row in enumerate(matrix):
        cells = ["" if i == j else shaded(percent(cell), cell, highest) for j, cell in enumerate(row)]
        table.add_row(escape(names[i]), *cells)
    console.print(table)


def _draw(png: Path, names: list[str], found: list[list[Overlap]]) -> None:
    from sparsehub.extras import require
    from sparsehub.files import write_file

    require("matplotlib", "train")
    from sparsehub.package.pictures import draw_matrices

    matrices = {
        "entries that both change,\nof those that either does": [[cell.jaccard for cell in row] for row in found],
        "of these, changed in the same\ndirection (chance gives 50%)": [
            [cell.sign_agreement for cell in row] for row in found
        ],
    }
    write_file(png, draw_matrices(names, matrices))
    progress(f"drew {png}")
