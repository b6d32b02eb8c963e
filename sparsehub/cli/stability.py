"""sparsehub stability: refit without some rows and with other seeds, and see what changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsehub.cli.extract import split_list
from sparsehub.cli.output import console, progress, show_json, show_table
from sparsehub.errors import UsageError

if TYPE_CHECKING:
    from sparsehub.training.stability import Stability

_SWEEP = (0.0005, 0.002, 0.005, 0.02, 0.1)
COLUMNS = ("density", "trained", "score", "spread", "by seed", "rows left out", "one left out", "gap", "Theorem 1")


def stability(
    config: Annotated[Path, typer.Argument(help="A YAML file with the settings of `sparsehub train`.")],
    out: Annotated[Path, typer.Option(help="The folder for runs, table and plots; no run is repeated.")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Another value of a setting: method=random.")
    ] = None,
    refits: Annotated[int, typer.Option(help="Refits without a share of the training rows.")] = 5,
    left_out: Annotated[float, typer.Option(help="That share.")] = 0.1,
    seeds: Annotated[int, typer.Option(help="Refits with another seed.")] = 3,
    one_out: Annotated[int, typer.Option(help="Refits without a single row, for small sets.")] = 0,
    sweep: Annotated[str | None, typer.Option(help="density: go through several.")] = None,
    densities: Annotated[str, typer.Option(help="Which ones: 0.001,0.01.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Refit without some of the training rows and with other seeds: how far do score and loss move?"""
    from sparsehub.settings import Naming
    from sparsehub.training.config_file import load_config
    from sparsehub.training.stability import Plan, measure_stability
    from sparsehub.training.stability_plots import draw_stability, draw_sweep

    if sweep not in (None, "density"):
        raise UsageError("only the density can be swept", found=sweep, expected="--sweep density")
    if densities and sweep is None:
        raise UsageError("densities belong to a sweep", fix="give --sweep density")
    given = {"out": out, "name": "stability", **_changes(change)}
    settings = load_config(config, given, Naming("stability", lambda name: f"--set {name}"))
    wanted = _densities(densities) if sweep else ()
    found = measure_stability(settings, Plan(refits, left_out, seeds, one_out, wanted), out, report=progress)
    title = f"{settings.method} on {Path(str(settings.train)).name}"
    picture = out / ("sweep.png" if sweep else "stability.png")
    draw_sweep(found, title, picture) if sweep else draw_stability(found[0], title, picture)
    (out / "stability.md").write_text(_markdown(found, title), encoding="utf-8")
    if as_json:
        told = [{**dataclasses.asdict(p), "spread": p.spread, "seed_spread": p.seed_spread} for p in found]
        show_json({"picture": str(picture), "table": str(out / "stability.md"), "found": told})
        return
    show_table(list(COLUMNS), [_row(point) for point in found], title)
    console.print(f"[dim]table and plot in {out}[/]", highlight=False)


def _changes(given: list[str] | None) -> dict[str, Any]:
    import yaml

    from sparsehub.cli.flags import name_values

    changes = name_values(given or (), "a setting is name=value", "method=random")
    return {name: yaml.safe_load(value) for name, value in changes.items()}


def _densities(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in split_list(text)) or _SWEEP
    except ValueError:
        raise UsageError("densities are numbers between commas", found=text, expected="0.001,0.01") from None


def _row(point: Stability) -> list[Any]:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    return [
        f"{point.density:.3%}",
        point.trained,
        f"{point.score:.4f}",
        f"{point.spread:.4f}",
        f"{point.seed_spread:.4f}",
        shown(point.removed),
        shown(point.one_out),
        shown(point.gap),
        shown(point.bound),
    ]


def _markdown(found: list[Stability], title: str) -> str:
    lines = [f"# Stability: {title}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---:|" * len(COLUMNS)]
    lines += ["| " + " | ".join(map(str, _row(point))) + " |" for point in found]
    notes = [
        "score: of the test split, with all rows; spread: its deviation when rows are left out; by seed: over seeds",
        "rows left out, one left out: mean change of the loss on the rows that a refit did not see",
        "gap: test loss - training loss; Theorem 1: rho^2 / ((1 - density) rows), rho a row's largest gradient norm",
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"
