"""sparsehub extract: a package from a fine-tuned checkpoint or a PEFT adapter."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsehub.cli.output import progress, show_fields, show_json, show_table, size
from sparsehub.errors import UsageError
from sparsehub.files import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from sparsehub.backbone import Checkpoint
    from sparsehub.convert.adapters import Adapter
    from sparsehub.convert.extract import Budget, Extracted, Extraction

_TASK = "The task"
_CHANGE = "What is kept"


def extract(
    source: Annotated[str, typer.Argument(help="A fine-tuned checkpoint, or a PEFT adapter's folder.")],
    backbone: Annotated[str, typer.Option(help="What it was fine-tuned from: a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="The package folder to write.")],
    name: Annotated[str, typer.Option(help="The task's name: a-z 0-9 . _ -")],
    version: Annotated[str, typer.Option(help="The package's version.")] = "0.1.0",
    license: Annotated[str, typer.Option(help="The package's licence, for its card.")] = "",  # noqa: A002
    revision: Annotated[str | None, typer.Option(help="The backbone's revision on the hub.")] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Keep the largest changes, this share of the backbone.", rich_help_panel=_CHANGE),
    ] = None,
    nnz: Annotated[int | None, typer.Option(help="Their number instead.", rich_help_panel=_CHANGE)] = None,
    value_dtype: Annotated[
        str | None,
        typer.Option(help="How kept changes are stored (default float16).", rich_help_panel=_CHANGE),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(help="Patterns of tensors that may be left out: another head.", rich_help_panel=_CHANGE),
    ] = None,
    task_of: Annotated[
        Path | None, typer.Option(help="A package whose task this is too.", rich_help_panel=_TASK)
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="The kind of task (default: as the checkpoint says).", rich_help_panel=_TASK)
    ] = None,
    text: Annotated[str, typer.Option(help="The text field, or two.", rich_help_panel=_TASK)] = "text",
    label: Annotated[str, typer.Option(help="The label field.", rich_help_panel=_TASK)] = "label",
    labels: Annotated[
        str,
        typer.Option(help="Label names in the head's order (default: the checkpoint's).", rich_help_panel=_TASK),
    ] = "",
    choices: Annotated[str, typer.Option(help="The fields of a multiple choice.", rich_help_panel=_TASK)] = "",
    max_length: Annotated[int, typer.Option(help="Tokens a row.", rich_help_panel=_TASK)] = 256,
    test: Annotated[
        str | None,
        typer.Option(help="Labelled rows: measure before and after the cut.", rich_help_panel=_TASK),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Turn a fine-tuned checkpoint or a PEFT adapter into a package.

    Without --density or --nnz it is lossless: every weight that differs, bit for bit (a LoRA needs a budget). A pair of
    checkpoints is read tensor by tensor, whatever its size.
    """
    from sparsehub.backbone import open_checkpoint
    from sparsehub.convert.extract import Extraction
    from sparsehub.convert.task_inference import TaskHints
    from sparsehub.convert.task_inference import task_of as task_from
    from sparsehub.package import read_manifest

    base = open_checkpoint(backbone, revision)
    origin = _origin(source)
    told = TaskHints(kind, split_list(text), label, split_list(labels), split_list(choices), max_length)
    task = read_manifest(task_of).task if task_of else task_from(told, getattr(origin, "folder", None))
    wanted = Extraction(base, task, out, name, version, license, tuple(drop or ()))
    kept = _Kept(density, nnz, value_dtype)
    progress(f"comparing {source} with {backbone}")
    found = _extract(wanted, origin, kept) if test is None else _measured(wanted, origin, kept, test)
    _show(found, as_json)


@dataclass(frozen=True)
class _Kept:
    """What the flags say of the budget."""

    density: float | None
    nnz: int | None
    value_dtype: str | None

    @property
    def budget(self) -> Budget | None:
        if self.density is not None and self.nnz is not None:
            raise UsageError("density and nnz are two ways to say the same", fix="give one of them")
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError("density is a share of the backbone's entries", found=self.density, expected="0 to 1")
        if self.nnz is not None and self.nnz < 1:
            raise UsageError("nnz is a number of entries", found=self.nnz, expected="at least 1")
        density, nnz = self.density, self.nnz
        if density is not None:
            return lambda total: round(density * total)
        return None if nnz is None else lambda _: nnz


def _origin(source: str) -> Checkpoint | Adapter:
    from sparsehub.backbone import open_checkpoint
    from sparsehub.convert.adapters import is_adapter, read_adapter

    return read_adapter(Path(source)) if is_adapter(Path(source)) else open_checkpoint(source)


def _extract(wanted: Extraction, origin: Checkpoint | Adapter, kept: _Kept) -> Extracted:
    from sparsehub.convert.adapters import Adapter
    from sparsehub.convert.extract import extract_adapter, extract_largest, extract_lossless

    if isinstance(origin, Adapter):
        return extract_adapter(wanted, origin, kept.budget, kept.value_dtype)
    if kept.budget is not None:
        return extract_largest(wanted, origin, kept.budget, kept.value_dtype or "float16")
    if kept.value_dtype is not None:
        raise UsageError("a lossless package keeps the checkpoint's own dtype", fix="give --density or --nnz as well")
    return extract_lossless(wanted, origin)


def _measured(wanted: Extraction, origin: Checkpoint | Adapter, kept: _Kept, test: str) -> Extracted:
    """Extract, judge what was tuned and what the package keeps of it, and write the package with both."""
    from sparsehub.package.writer import rewrite_package

    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=wanted.out.parent) as folder:
        found = _extract(dataclasses.replace(wanted, out=Path(folder) / "package"), origin, kept)
        progress(f"measuring on {test}")
        before, after = _judged(wanted, origin, found.folder, Path(folder), test)
        told = {"metrics": {"test": before}, "share_of_squared_norm_kept": round(found.kept, 6)}
        manifest = rewrite_package(found.folder, wanted.out, {"test": after}, {"before_packaging": told})
    return dataclasses.replace(found, folder=wanted.out, manifest=manifest)


def _judged(
    wanted: Extraction, origin: Checkpoint | Adapter, package: Path, folder: Path, test: str
) -> tuple[dict[str, float], dict[str, float]]:
    from sparsehub.backbone.tokenizer import load_tokenizer
    from sparsehub.convert.adapters import Adapter
    from sparsehub.convert.extract import extract_adapter
    from sparsehub.package import read_package
    from sparsehub.package.materialize import task_model_of
    from sparsehub.package.task_model import auto_class
    from sparsehub.training.data import load_split
    from sparsehub.training.evaluation import judge

    split, tokenizer = load_split(wanted.task, test), load_tokenizer(wanted.base)

    def of_package(path: Path) -> dict[str, float]:
        read = read_package(path)
        dtype = read.delta.value_dtype if read.delta.value_kind == "set" else "float32"
        return judge(task_model_of(read, wanted.base, dtype=dtype).model, wanted.task, tokenizer, split)

    if isinstance(origin, Adapter):  # all of it: what PEFT itself would merge
        whole = dataclasses.replace(wanted, out=folder / "whole")
        before = of_package(extract_adapter(whole, origin, lambda total: total, "float32").folder)
    else:
        model = auto_class(wanted.task.kind).from_pretrained(origin.folder, local_files_only=True)
        before = judge(model, wanted.task, tokenizer, split)
    return before, of_package(package)


def split_list(text: str) -> tuple[str, ...]:
    """A list on the command line: words between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _show(found: Extracted, as_json: bool) -> None:
    manifest = found.manifest
    before = manifest.training.get("before_packaging", {}).get("metrics", {})
    if as_json:
        show_json(
            {
                "package": str(found.folder),
                "digest": manifest.digest,
                "nnz": manifest.delta.nnz,
                "density": manifest.delta.density,
                "value_kind": manifest.delta.value_kind,
                "value_dtype": manifest.delta.value_dtype,
                "share_of_squared_norm_kept": found.kept,
                "sparse_bytes": found.sparse_bytes,
                "dense_bytes": found.dense_bytes,
                "pays": found.pays,
                "left_out": list(found.unused),
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
            "changes": f"{manifest.delta.nnz:,} of {manifest.backbone.parameters:,} ({manifest.delta.density:.3%})",
            "values": f"{manifest.delta.value_dtype}, {manifest.delta.value_kind}",
            "kept": f"{found.kept:.2%} of the change's squared norm",
            "size": f"{size(found.sparse_bytes)}, and {size(found.dense_bytes)} what it came from: "
            + ("the sparse file pays" if found.pays else "the sparse file does NOT pay"),
            **({"left out": ", ".join(found.unused)} if found.unused else {}),
            **{f"{split} before": _metrics(row) for split, row in before.items()},
            **{f"{split} after": _metrics(row) for split, row in manifest.metrics.items()},
        },
    )
    rows = [[e.part, e.changed, f"{e.changed / e.entries:.3%}", f"{e.kept:.1%}"] for e in found.layers]
    show_table(["part", "entries", "density", "squared norm kept"], rows, "\nwhat changes, by layer")


def _metrics(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in row.items())
