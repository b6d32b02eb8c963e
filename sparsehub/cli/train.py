"""sparsehub train: train, evaluate and package a task in one command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehub.cli.output import progress, show_fields, show_json
from sparsehub.package.units import size_text


def train() -> Callable[..., None]:
    """Train, evaluate and package a task. An interrupted run goes on when the command is repeated."""
    from sparsehub.cli.flags import with_flags
    from sparsehub.training.config import TrainConfig

    return with_flags(TrainConfig)(_train)


def _train(
    given: dict[str, Any],
    *,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A YAML file with any of these settings; flags win.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Drop an interrupted run and begin anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    from sparsehub.cli.flags import name_values
    from sparsehub.settings import Naming, flag_of
    from sparsehub.training import TrainConfig, measure
    from sparsehub.training import train as run
    from sparsehub.training.config_file import load_config
    from sparsehub.training.method import method_named
    from sparsehub.training.processes import speaks

    if "options" in given:
        options = name_values(given["options"], "an option of a method is name=value", "probability=0.9")
        given = {**given, "options": options}
    loaded = load_config(config, given, Naming("train", partial(flag_of, TrainConfig)))
    packages = method_named(loaded.method).packages
    result = (run if packages else measure)(loaded, restart=restart, report=progress)
    if not speaks():
        return
    if packages:
        _show(result, as_json)
    else:
        _show_measured(loaded.method, result, as_json)


def _show(result: Any, as_json: bool) -> None:
    manifest = result.manifest
    if as_json:
        show_json(
            {
                "package": str(result.folder),
                "digest": manifest.digest,
                "bytes": result.package_bytes,
                "nnz": manifest.nnz,
                "density": manifest.density,
                "metrics": manifest.metrics,
                "training": manifest.training,
                **({"aside": str(result.aside)} if result.aside else {}),
            }
        )
        return
    before = manifest.training.get("before_packaging")
    show_fields(
        f"{manifest.name}@{manifest.version}",
        {
            "package": result.folder,
            "digest": manifest.digest,
            "size": size_text(result.package_bytes),
            "changes": f"{manifest.nnz:,} of {manifest.backbone.parameters:,} entries"
            if manifest.nnz
            else "none: a head alone",
            **_metrics(manifest.metrics),
            **_probes(manifest),
            **({} if before is None else {"kept": f"{before['share_of_squared_norm_kept']:.1%} of the squared norm"}),
            **({} if before is None else _metrics(before["metrics"], " before the cut")),
            **({"beside it": result.aside} if result.aside else {}),
        },
    )


def _probes(manifest: Any) -> dict[str, str]:
    """The scores of the linear head on the frozen backbone, which everybody has already."""
    found = {n: row["probe"] for n, row in manifest.training.get("baselines", {}).items() if "probe" in row}
    return _metrics(found, " (probe)")


def _metrics(splits: dict[str, dict[str, float]], note: str = "") -> dict[str, str]:
    return {f"{split}{note}": "  ".join(f"{k} {v:.4f}" for k, v in row.items()) for split, row in splits.items()}


def _show_measured(method: str, result: Any, as_json: bool) -> None:
    if as_json:
        show_json(
            {"package": None, "trained": str(result.folder), "metrics": result.metrics, "training": result.training}
        )
        return
    show_fields(f"{method}: measured, not packaged", {"what was trained": result.folder, **_metrics(result.metrics)})
    progress(
        f"{method} adds layers to the model. A package holds changes of the backbone's weights and a head: it cannot "
        "hold them, and nothing here can be pushed or served. Every other method ends in a package."
    )
