"""sparsehub extract: make a package from a fine-tuned checkpoint or a PEFT adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsehub.cli.choices import one_of
from sparsehub.cli.output import progress, show_fields, show_json, show_table
from sparsehub.delta_format import STORED_DTYPES
from sparsehub.package.task_spec import KINDS
from sparsehub.package.units import size_text

if TYPE_CHECKING:
    from sparsehub.convert.extract import Extracted, Layer

_TASK = "The task"
_CHANGE = "What is kept"
Backbone = Annotated[
    str, typer.Option(help="The backbone that it was fine-tuned from: a folder or an id on the Hugging Face Hub.")
]
Density = Annotated[
    float | None,
    typer.Option(help="Keep the largest changes: this share of the backbone's entries.", rich_help_panel=_CHANGE),
]
Nnz = Annotated[int | None, typer.Option(help="Keep this many of the largest changes.", rich_help_panel=_CHANGE)]
ValueDtype = Annotated[
    str | None, one_of(tuple(STORED_DTYPES), "How kept changes are stored (default float16).", _CHANGE)
]
Drop = Annotated[
    list[str] | None,
    typer.Option(
        help="A pattern of tensors that may be left out, such as another head; may be repeated.",
        rich_help_panel=_CHANGE,
    ),
]
TaskOf = Annotated[
    Path | None, typer.Option(help="Take the task's description from this package.", rich_help_panel=_TASK)
]
Kind = Annotated[str | None, one_of(KINDS, "The kind of task (default: the checkpoint's).", _TASK)]
Labels = Annotated[
    str, typer.Option(help="Label names in the head's order (default: the checkpoint's).", rich_help_panel=_TASK)
]
Choices = Annotated[
    str, typer.Option(help="The choice fields of a multiple-choice task, between commas.", rich_help_panel=_TASK)
]
Test = Annotated[
    str | None,
    typer.Option(
        help="Labelled rows on which to measure the model before and after extraction.", rich_help_panel=_TASK
    ),
]
Check = Annotated[
    bool | None,
    typer.Option(
        "--check/--no-check",
        help="Run a probe batch through the tuned model and through the package before it is written; "
        "both are loaded, one after the other (default: up to 500 million parameters).",
        show_default=False,
    ),
]


def command() -> Callable[..., None]:
    """Turn a fine-tuned checkpoint or a PEFT adapter into a package.

    Without --density or --nnz it is lossless: every weight that differs, bit for bit (a LoRA needs a budget). A pair of
    checkpoints is read tensor by tensor, whatever its size; only --check and --test load models.
    """
    from sparsehub.cli.flags import with_flags
    from sparsehub.training.tables import Layout

    return with_flags(Layout)(extract)


def extract(
    layout: dict[str, Any],
    source: Annotated[str, typer.Argument(help="A fine-tuned checkpoint, or a PEFT adapter's folder.")],
    backbone: Backbone,
    out: Annotated[Path, typer.Option(help="The package folder to write.")],
    name: Annotated[str, typer.Option(help="The task's name: a-z 0-9 . _ -")],
    version: Annotated[str, typer.Option(help="The package's version.")] = "0.1.0",
    license: Annotated[str, typer.Option(help="The package's licence, for its card.")] = "",  # noqa: A002
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the Hugging Face Hub.")] = None,
    density: Density = None,
    nnz: Nnz = None,
    value_dtype: ValueDtype = None,
    drop: Drop = None,
    task_of: TaskOf = None,
    kind: Kind = None,
    text: Annotated[str, typer.Option(help="The text field, or two between commas.", rich_help_panel=_TASK)] = "text",
    label: Annotated[str, typer.Option(help="The label field.", rich_help_panel=_TASK)] = "label",
    labels: Labels = "",
    choices: Choices = "",
    max_length: Annotated[int, typer.Option(help="The most tokens of a row.", rich_help_panel=_TASK)] = 256,
    test: Test = None,
    check: Check = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """The verb; layout: settings of `Layout`, as they were given."""
    from sparsehub.api.extract import extract as write
    from sparsehub.settings import Naming, errors_named

    lists: dict[str, Any] = {"text": split_list(text), "labels": split_list(labels), "choices": split_list(choices)}
    task = {**_described(task_of), "kind": kind, **lists, "label": label, "max_length": max_length}
    kept: dict[str, Any] = {"density": density, "nnz": nnz, "value_dtype": value_dtype, "drop": drop or ()}
    written: dict[str, Any] = {"name": name, "version": version, "license": license, "revision": revision}
    with errors_named(Naming("extract", lambda setting: f"--{setting}")):
        found = write(
            source, backbone, out, **written, **kept, **task, test=test, **layout, check=check, report=progress
        )
    _show(found, as_json)


def _described(package: Path | None) -> dict[str, Any]:
    """The task of another package, and the head that goes with it where no checkpoint has it."""
    from sparsehub.package import read_package
    from sparsehub.package.task_spec import LINEAR

    if package is None:
        return {}
    found = read_package(package)
    return {"task": found.manifest.task, "head": found.head if found.manifest.task.head.type == LINEAR else None}


def split_list(text: str) -> tuple[str, ...]:
    """Parse a list on the command line: words between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _show(found: Extracted, as_json: bool) -> None:
    manifest = found.manifest
    assert manifest.delta is not None  # an extraction without a change is refused
    before = manifest.training.get("before_packaging", {}).get("metrics", {})
    if as_json:
        show_json(
            {
                "package": str(found.folder),
                "digest": manifest.digest,
                "nnz": manifest.nnz,
                "density": manifest.density,
                "value_kind": manifest.delta.value_kind,
                "value_dtype": manifest.delta.value_dtype,
                "share_of_squared_norm_kept": found.kept,
                "sparse_bytes": found.sparse_bytes,
                "dense_bytes": found.dense_bytes,
                "pays": found.pays,
                "left_out": list(found.unused),
                "notes": list(found.notes),
                "check": None
                if found.agreement is None
                else dataclasses.asdict(found.agreement) | {"agrees": found.agreement.agrees},
                "metrics": {"before": before, "after": manifest.metrics},
                "layers": [dataclasses.asdict(layer) for layer in found.layers],
            }
        )
        return
    show_fields(
        f"{manifest.name}@{manifest.version}",
        {
            "package": found.folder,
            "digest": manifest.digest,
            "changes": f"{manifest.nnz:,} of {manifest.backbone.parameters:,} ({manifest.density:.3%})",
            "values": f"{manifest.delta.value_dtype}, {manifest.delta.value_kind}",
            "kept": f"{found.kept:.2%} of the change's squared norm",
            "size": f"{size_text(found.sparse_bytes)}, and {size_text(found.dense_bytes)} what it came from: "
            + ("the sparse file pays" if found.pays else "the sparse file does NOT pay"),
            **({"left out": ", ".join(found.unused)} if found.unused else {}),
            **({"check": found.agreement.text} if found.agreement else {}),
            **{"note" if i == 0 else f"note {i + 1}": note for i, note in enumerate(found.notes)},
            **{f"{split} before": _metrics(row) for split, row in before.items()},
            **{f"{split} after": _metrics(row) for split, row in manifest.metrics.items()},
        },
    )
    show_layers(found.layers)


def show_layers(layers: Sequence[Layer]) -> None:
    """What a package changes, a line for each layer."""
    rows = [[e.part, e.changed, f"{e.changed / e.entries:.3%}", f"{e.kept:.1%}"] for e in layers]
    show_table(["part", "entries", "density", "squared norm kept"], rows, "\nwhat changes, by layer", ("entries",))


def _metrics(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in row.items())
