"""sparsehub train: train, evaluate and package a task in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehub.cli.output import progress, show_fields, show_json, size
from sparsehub.errors import UsageError

_DATA = "Data"
_METHOD = "What may change"
_LOOP = "Training"


def train(
    config: Annotated[Path | None, typer.Option(help="A YAML file with any of these settings; flags win.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A folder or an id of the Hugging Face Hub.")] = None,
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the hub.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="text-classification, regression, multiple-choice, token-classification or text-generation."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The task's name: a-z 0-9 . _ -")] = None,
    version: Annotated[str | None, typer.Option(help="The package's version (default 0.1.0).")] = None,
    out: Annotated[str | None, typer.Option(help="The package folder to write.")] = None,
    license: Annotated[str | None, typer.Option(help="The package's licence, for its card.")] = None,  # noqa: A002
    train: Annotated[
        str | None,
        typer.Option(
            help="A .jsonl .json .csv .tsv .parquet .txt file, or data-set\\[:config]:split.", rich_help_panel=_DATA
        ),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Likewise; chooses the best epoch.", rich_help_panel=_DATA)
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Likewise; only measured, at the end.", rich_help_panel=_DATA)
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The text field, or two: text_a,text_b.", rich_help_panel=_DATA)
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="The fields of a multiple choice: choice1,choice2.", rich_help_panel=_DATA)
    ] = None,
    label: Annotated[str | None, typer.Option(help="The label field (default label).", rich_help_panel=_DATA)] = None,
    labels: Annotated[
        str | None, typer.Option(help="Label names in order: no,yes (default: found).", rich_help_panel=_DATA)
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row (default 256).", rich_help_panel=_DATA)] = None,
    packing: Annotated[
        bool | None,
        typer.Option("--packing", help="Training texts one after another in full rows.", rich_help_panel=_DATA),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Selection: sam (default), sam-released, sam-hessian, fisher, snip, child-tuning, random, magnitude, "
            "bitfit. While training: full, lt-sft, diff-pruning, child-pruning, mixout, lora, adapter.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of the entries that may change (default 0.005; 1 for full, mixout, bitfit).",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    nnz: Annotated[int | None, typer.Option(help="Their number instead.", rich_help_panel=_METHOD)] = None,
    include: Annotated[
        str | None, typer.Option(help="Patterns of parameters that may change: 'encoder.*'.", rich_help_panel=_METHOD)
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(help="Patterns of parameters that may not: '*.bias,pooler.*'.", rich_help_panel=_METHOD),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="Where entries compete: global, kind (of matrix, over all layers) or tensor.", rich_help_panel=_METHOD
        ),
    ] = None,
    calibration_batches: Annotated[
        int | None, typer.Option(help="Batches that a selection rule looks at (default 64).", rich_help_panel=_METHOD)
    ] = None,
    head_steps: Annotated[
        int | None, typer.Option(help="Steps in which the head trains alone before that.", rich_help_panel=_METHOD)
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="A method's own setting: probability=0.9 (docs/methods.md).", rich_help_panel=_METHOD),
    ] = None,
    value_dtype: Annotated[
        str | None,
        typer.Option(
            help="How values are stored: float16 (default), bfloat16, float32, int8.", rich_help_panel=_METHOD
        ),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Default 5.", rich_help_panel=_LOOP)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default 16.", rich_help_panel=_LOOP)] = None,
    accumulation: Annotated[int | None, typer.Option(help="Batches a step (default 1).", rich_help_panel=_LOOP)] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of the values (default 2e-3; some methods have another).", rich_help_panel=_LOOP),
    ] = None,
    head_learning_rate: Annotated[float | None, typer.Option(help="Of the head.", rich_help_panel=_LOOP)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Pulls the values towards no change (default 0).", rich_help_panel=_LOOP)
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="linear (default), cosine, constant_with_warmup.", rich_help_panel=_LOOP)
    ] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the steps.", rich_help_panel=_LOOP)] = None,
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm.", rich_help_panel=_LOOP)] = None,
    metric: Annotated[
        str | None, typer.Option(help="The metric that chooses the best epoch.", rich_help_panel=_LOOP)
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations without a better one.", rich_help_panel=_LOOP)
    ] = None,
    evaluation_steps: Annotated[
        int | None, typer.Option(help="Evaluate and save every so many steps, not epochs.", rich_help_panel=_LOOP)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 (default), bfloat16, float16.", rich_help_panel=_LOOP)
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=_LOOP),
    ] = None,
    compile: Annotated[  # noqa: A002
        str | None, typer.Option(help="A backend of torch.compile: inductor.", rich_help_panel=_LOOP)
    ] = None,
    preload: Annotated[
        bool | None,
        typer.Option("--preload", help="Tokenise all rows once, keep them on the device.", rich_help_panel=_LOOP),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: cuda if there).", rich_help_panel=_LOOP)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default 42.", rich_help_panel=_LOOP)] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Drop an interrupted run and begin anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train, evaluate and package a task. An interrupted run goes on when the command is repeated."""
    settings = ("config", "restart", "as_json", "option")
    flags = {key: value for key, value in locals().items() if key not in settings and key != "settings"}
    from sparsehub.training import measure
    from sparsehub.training import train as run
    from sparsehub.training.config import load_config
    from sparsehub.training.method import method_named
    from sparsehub.training.processes import speaks

    flags["options"] = _options(option)
    loaded = load_config(config, flags)
    packages = method_named(loaded.method).packages
    result = (run if packages else measure)(loaded, restart=restart, report=progress)
    if not speaks():
        return
    if packages:
        _show(result, as_json)
    else:
        _show_measured(loaded.method, result, as_json)


def _options(given: list[str] | None) -> dict[str, str] | None:
    """`name=value`, as often as it stands on the command line."""
    for text in given or ():
        if "=" not in text:
            raise UsageError("an option of a method is name=value", found=text, expected="for example probability=0.9")
    return dict(text.split("=", 1) for text in given) if given else None


def _show(result: Any, as_json: bool) -> None:
    manifest = result.manifest
    if as_json:
        show_json(
            {
                "package": str(result.folder),
                "digest": manifest.digest,
                "bytes": result.package_bytes,
                "nnz": manifest.delta.nnz,
                "density": manifest.delta.density,
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
            "size": size(result.package_bytes),
            "changes": f"{manifest.delta.nnz:,} of {manifest.backbone.parameters:,} entries",
            **_metrics(manifest.metrics),
            **({} if before is None else {"kept": f"{before['share_of_squared_norm_kept']:.1%} of the squared norm"}),
            **({} if before is None else _metrics(before["metrics"], " before the cut")),
            **({"beside it": result.aside} if result.aside else {}),
        },
    )


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
