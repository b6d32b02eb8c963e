"""From a fine-tuned checkpoint or a PEFT adapter to a package in one call: `sparsehub extract` and notebooks use it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsehub.errors import UsageError
from sparsehub.files import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from torch import nn

    from sparsehub.backbone import Checkpoint
    from sparsehub.convert.adapters import Adapter
    from sparsehub.convert.extract import Budget, Extracted, Extraction
    from sparsehub.package import TaskSpec

Metrics = dict[str, float]


def extract(
    source: str | Path,
    backbone: str | Path,
    out: str | Path,
    *,
    name: str,
    version: str = "0.1.0",
    license: str = "",  # noqa: A002 - the word that everybody looks for
    revision: str | None = None,
    density: float | None = None,
    nnz: int | None = None,
    value_dtype: str | None = None,
    drop: Sequence[str] = (),
    task: TaskSpec | None = None,
    kind: str | None = None,
    text: str | Sequence[str] = "text",
    label: str = "label",
    labels: Sequence[str] = (),
    choices: Sequence[str] = (),
    max_length: int = 256,
    test: str | None = None,
    report: Callable[[str], None] | None = None,
) -> Extracted:
    """Write the package `out`: what a fine-tuned checkpoint or a PEFT adapter changes in its backbone.

    source: a checkpoint's folder or hub id, or an adapter's folder. backbone: what it was fine-tuned from. Without
    density (a share of the backbone's entries) or nnz (their number) the package is lossless: every weight that
    differs, bit for bit; a LoRA needs a budget. value_dtype: of kept changes, float16 by default. drop: shell patterns
    of tensors that may be left out. task: what the package does; otherwise the checkpoint's configuration says it, or
    kind, text (field names), label (a field), labels (in the head's order), choices (fields) and max_length (tokens).
    test: a file of labelled rows; the tuned model and the package are both measured on it. report: called
    with the name of each step that takes a while.

    Raises `UsageError`, `BackboneError` and `DeltaError`; nothing is written then.
    """
    from sparsehub.backbone import open_checkpoint
    from sparsehub.convert.extract import Extraction
    from sparsehub.convert.task_inference import TaskHints, task_of

    base, origin, budget = open_checkpoint(str(backbone), revision), _origin(Path(source)), _budget(density, nnz)
    if task is None:
        fields = (text,) if isinstance(text, str) else tuple(text)
        hints = TaskHints(kind, fields, label, tuple(labels), tuple(choices), max_length)
        task = task_of(hints, getattr(origin, "folder", None))
    wanted = Extraction(base, task, Path(out), name, version, license, tuple(drop))
    if report is not None:
        report(f"comparing {source} with {backbone}")
    extractor = _Extractor(origin, budget, value_dtype, report)
    return extractor.extract(wanted) if test is None else extractor.measured(wanted, test)


def _origin(source: Path) -> Checkpoint | Adapter:
    from sparsehub.backbone import open_checkpoint
    from sparsehub.convert.adapters import is_adapter, read_adapter

    return read_adapter(source) if is_adapter(source) else open_checkpoint(str(source))


def _budget(density: float | None, nnz: int | None) -> Budget | None:
    if density is not None and nnz is not None:
        raise UsageError("density and nnz are two ways to say the same", fix="give one of them")
    if density is not None and not 0 < density <= 1:
        raise UsageError("density is a share of the backbone's entries", found=density, expected="0 to 1")
    if nnz is not None and nnz < 1:
        raise UsageError("nnz is a number of entries", found=nnz, expected="at least 1")
    if density is not None:
        return lambda total: round(density * total)
    return None if nnz is None else lambda _: nnz


@dataclass(frozen=True)
class _Extractor:
    """What is extracted from, and how much of it is kept."""

    origin: Checkpoint | Adapter
    budget: Budget | None  # None: all of it, bit for bit
    value_dtype: str | None
    report: Callable[[str], None] | None

    def extract(self, wanted: Extraction) -> Extracted:
        from sparsehub.convert.adapters import Adapter
        from sparsehub.convert.extract import extract_adapter, extract_largest, extract_lossless

        if isinstance(self.origin, Adapter):
            return extract_adapter(wanted, self.origin, self.budget, self.value_dtype)
        if self.budget is not None:
            return extract_largest(wanted, self.origin, self.budget, self.value_dtype or "float16")
        if self.value_dtype is not None:
            fix = "give --density or --nnz as well"
            raise UsageError("a lossless package keeps the checkpoint's own dtype", fix=fix)
        return extract_lossless(wanted, self.origin)

    def measured(self, wanted: Extraction, test: str) -> Extracted:
        """Extract, evaluate what was tuned and what the package keeps of it, and write the package with both."""
        from sparsehub.package.writer import rewrite_package

        wanted.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=wanted.out.parent) as folder:
            found = self.extract(dataclasses.replace(wanted, out=Path(folder) / "package"))
            if self.report is not None:
                self.report(f"measuring on {test}")
            before, after = self._evaluated(wanted, found.folder, Path(folder), test)
            record = {"metrics": {"test": before}, "share_of_squared_norm_kept": round(found.kept, 6)}
            manifest = rewrite_package(found.folder, wanted.out, {"test": after}, {"before_packaging": record})
        return dataclasses.replace(found, folder=wanted.out, manifest=manifest)

    def _evaluated(self, wanted: Extraction, package: Path, folder: Path, test: str) -> tuple[Metrics, Metrics]:
        """The metrics of the tuned model and of the package. folder: for what is only needed meanwhile."""
        from sparsehub.backbone.tokenizer import load_tokenizer
        from sparsehub.convert.adapters import Adapter
        from sparsehub.convert.extract import extract_adapter
        from sparsehub.package.task_model import auto_class
        from sparsehub.training.data import load_split
        from sparsehub.training.evaluation import judge

        split, tokenizer = load_split(wanted.task, test), load_tokenizer(wanted.base)

        def metrics_of(model: nn.Module) -> Metrics:
            return judge(model, wanted.task, tokenizer, split)

        if isinstance(self.origin, Adapter):  # all of it: what PEFT itself would merge
            whole = dataclasses.replace(wanted, out=folder / "whole")
            merged = extract_adapter(whole, self.origin, lambda total: total, "float32").folder
            return metrics_of(_model_of(merged, wanted.base)), metrics_of(_model_of(package, wanted.base))
        tuned = auto_class(wanted.task.kind)
        before = metrics_of(tuned.from_pretrained(self.origin.folder, local_files_only=True))
        return before, metrics_of(_model_of(package, wanted.base))


def _model_of(folder: Path, base: Checkpoint) -> nn.Module:
    from sparsehub.package import read_package
    from sparsehub.package.materialize import native_dtype, task_model_of

    package = read_package(folder)
    return task_model_of(package, base, dtype=native_dtype(package)).model
