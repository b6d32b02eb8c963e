"""sparsehub stability: refit without some rows and with other seeds, and see what changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
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


def stability() -> Callable[..., None]:
    """Refit without some of the training rows and with other seeds: how far do score and loss move?"""
    from sparsehub.cli.flags import with_flags
    from sparsehub.training.stability_plan import Plan

    return with_flags(Plan)(_stability)


def _stability(
    given: dict[str, Any],
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file with the settings of `sparsehub train`.")
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where runs, table and plots go; finished runs are kept."),
    ],
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another value of a training setting: method=random."),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="SETTING", help="Measure at several values of a setting: density.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    from sparsehub.settings import Naming, errors_named, flag_of
    from sparsehub.training.config_file import load_config
    from sparsehub.training.stability import measure_stability
    from sparsehub.training.stability_plan import Plan

    if sweep not in (None, "density"):
        raise UsageError("only the density can be swept", found=sweep, expected="--sweep density")
    if "densities" in given and sweep is None:
        raise UsageError("densities belong to a sweep", fix="give --sweep density")
    densities = _densities(given.pop("densities", "")) if sweep else ()
    with errors_named(Naming("stability", partial(flag_of, Plan))):
        plan = Plan(**given, densities=densities)
    changes = {"out": out, "name": "stability", **_changes(change)}
    settings = load_config(config, changes, Naming("stability", lambda name: f"--set {name}"))
    found = measure_stability(settings, plan, out, report=progress)
    title = f"{settings.method} on {Path(str(settings.train)).name}"
    picture = _draw(found, title, out / ("sweep.png" if sweep else "stability.png"))
    table = out / "stability.md"
    table.write_text(_markdown(found, title), encoding="utf-8")
    if as_json:
        points = [{**dataclasses.asdict(p), "spread": p.spread, "seed_spread": p.seed_spread} for p in found]
        show_json({"picture": str(picture), "table": str(table), "found": points})
        return
    show_points(found, title)
    console.print(f"[dim]table and plot in {out}[/]", highlight=False)


def show_points(found: list[Stability], title: str) -> None:
    """What was measured, a line for each density."""
    drop = ("trained", "Theorem 1", "one left out", "gap")
    show_table(list(COLUMNS), [_row(point) for point in found], title, drop)


def _draw(found: list[Stability], title: str, picture: Path) -> Path:
    from sparsehub.training.stability_plots import draw_stability, draw_sweep

    draw_sweep(found, title, picture) if picture.stem == "sweep" else draw_stability(found[0], title, picture)
    return picture


def _changes(given: list[str] | None) -> dict[str, Any]:
    import yaml

    from sparsehub.cli.flags import name_values
    from sparsehub.schema import unknown_name
    from sparsehub.settings import settings_of
    from sparsehub.training.config import TrainConfig

    changes = name_values(given or (), "a setting is name=value", "method=random")
    known = [setting.name for setting in settings_of(TrainConfig)]
    for name in changes.keys() - set(known):
        raise UsageError(f"--set: {unknown_name('setting', name, known)}")
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
