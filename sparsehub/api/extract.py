"""From a fine-tuned checkpoint or a PEFT adapter to a package in one call: `sparsehub extract` and notebooks use it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsehub.delta_format import STORED_DTYPES
from sparsehub.errors import BackboneError, UsageError
from sparsehub.files import new_folder
from sparsehub.schema import unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsehub.backbone import Checkpoint
    from sparsehub.convert.adapters import Adapter
    from sparsehub.convert.extract import Budget, Extracted, Extraction
    from sparsehub.package import TaskSpec
    from sparsehub.training.data import Split
    from sparsehub.training.evaluation import Outputs
    from sparsehub.training.tables import Layout

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
    head: Mapping[str, Tensor] | None = None,
    kind: str | None = None,
    text: str | Sequence[str] = "text",
    label: str = "label",
    labels: Sequence[str] = (),
    choices: Sequence[str] = (),
    max_length: int = 256,
    test: str | None = None,
    quoting: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    check: bool | None = None,
    report: Callable[[str], None] | None = None,
) -> Extracted:
    """Write the package `out`: what a fine-tuned checkpoint or a PEFT adapter changes in its backbone.

    source: a checkpoint's folder or hub id, or an adapter's folder. backbone: what it was fine-tuned from. Without
    density (a share of the backbone's entries) or nnz (their number) the package is lossless: every weight that
    differs, bit for bit; a LoRA needs a budget. value_dtype: of kept changes, float16 by default. drop: shell patterns
    of tensors that may be left out. task: what the package does, head: the tensors of its linear head, where it has
    one that is not beside an adapter; otherwise the checkpoint's configuration says it, or kind, text (field names),
    label (a field), labels (in the head's order), choices (fields) and max_length (tokens; no more than the backbone
    takes). test: a file of labelled rows; the tuned model and the package are both measured on it; quoting, delimiter
    and encoding say how it is read where that is not to be detected. check: run a probe batch through the tuned model
    and through the package before it is written, which loads both, one after the other; by default up to 500 million
    parameters. report: called with the name of each step that takes a while.

    Raises `UsageError`, `BackboneError` and `DeltaError`, also where a lossless package gives other outputs than the
    tuned model; nothing is written then.
    """
    from sparsehub.backbone import open_checkpoint
    from sparsehub.convert.extract import Extraction
    from sparsehub.convert.task_inference import TaskHints, task_of

    if value_dtype is not None and value_dtype not in STORED_DTYPES:
        raise UsageError(unknown_name("value dtype", value_dtype, list(STORED_DTYPES)))
    rows = _test_rows(test, quoting, delimiter, encoding)
    base, origin, budget = open_checkpoint(str(backbone), revision), _origin(Path(source)), _budget(density, nnz)
    extractor = _Extractor(origin, budget, value_dtype, report or (lambda _: None))
    if task is None:
        fields = (text,) if isinstance(text, str) else tuple(text)
        hints = TaskHints(kind, fields, label, tuple(labels), tuple(choices), max_length)
        task = _within(task_of(hints, getattr(origin, "folder", None)), base, extractor.report)
    wanted = Extraction(base, task, Path(out), name, version, license, tuple(drop), head or {})
    extractor.report(f"comparing {source} with {backbone}")
    return extractor.write(wanted, rows, check)


def _origin(source: Path) -> Checkpoint | Adapter:
    from sparsehub.backbone import open_checkpoint
    from sparsehub.convert.adapters import is_adapter, read_adapter

    return read_adapter(source) if is_adapter(source) else open_checkpoint(str(source))


def _within(task: TaskSpec, base: Checkpoint, report: Callable[[str], None]) -> TaskSpec:
    """The task with rows cut where the backbone's positions end, as training cuts them."""
    from sparsehub.backbone.backbone import read_config
    from sparsehub.backbone.tokenizer import load_tokenizer, max_tokens
    from sparsehub.convert.task_inference import TaskHints
    from sparsehub.convert.tokenizer_check import has_tokenizer

    if not has_tokenizer(base.folder):
        return task
    limit = max_tokens(load_tokenizer(base), read_config(base))
    if task.max_length <= limit:
        return task
    if task.max_length != TaskHints.max_length:  # it was asked for
        report(f"rows are cut at {limit} tokens, the most that this backbone takes")
    return dataclasses.replace(task, max_length=limit)


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
class _TestRows:
    """Labelled rows: where they are, and how they are read."""

    source: str
    layout: Layout


def _test_rows(test: str | None, quoting: str | None, delimiter: str | None, encoding: str | None) -> _TestRows | None:
    from sparsehub.settings import shown
    from sparsehub.training.tables import Layout

    layout = Layout(quoting, delimiter, encoding)
    if test is not None:
        return _TestRows(test, layout)
    given = [shown(name) for name in ("quoting", "delimiter", "encoding") if getattr(layout, name) is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: nothing is read so", fix=f"give {shown('test')} as well")
    return None


@dataclass(frozen=True)
class _Extractor:
    """What is extracted from, and how much of it is kept."""

    origin: Checkpoint | Adapter
    budget: Budget | None  # None: all of it, bit for bit
    value_dtype: str | None
    report: Callable[[str], None]

    def write(self, wanted: Extraction, test: _TestRows | None, check: bool | None) -> Extracted:
        """Extract, compare with the tuned model what came out, and give the package its name where all is well."""
        with new_folder(wanted.out) as folder:
            found = self.extract(dataclasses.replace(wanted, out=folder / "package"))
            checks, notes = self._checks(found, check)
            found = dataclasses.replace(found, notes=(*found.notes, *notes))
            if checks or test is not None:
                found = self._compared(wanted, found, test, checks=checks)
            for file in found.folder.iterdir():
                file.rename(folder / file.name)
            found.folder.rmdir()
        return dataclasses.replace(found, folder=wanted.out)

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

    def _checks(self, found: Extracted, check: bool | None) -> tuple[bool, tuple[str, ...]]:
        """Whether a probe is run, and what a report says where it is not."""
        from sparsehub.convert.output_comparison import PARAMETERS

        parameters = found.manifest.backbone.parameters
        if check or (check is None and parameters <= PARAMETERS):
            return True, ()
        why = "as asked" if check is False else f"{parameters:,} parameters are more than {PARAMETERS:,}: give --check"
        return False, (f"the package was not compared with the tuned model by a probe batch ({why})",)

    def _compared(self, wanted: Extraction, found: Extracted, test: _TestRows | None, *, checks: bool) -> Extracted:
        """Run probe and test rows through the tuned model, then through the package; one of them is in memory."""
        from sparsehub.convert.output_comparison import agreement
        from sparsehub.convert.tuned_model import tuned_model
        from sparsehub.package.materialize import native_dtype_of
        from sparsehub.package.writer import rewrite_package

        comparison = _Comparison.of(wanted, test, self.report, checks=checks)
        self.report("running what was tuned" + (f", and measuring it on {test.source}" if test else ""))
        tuned = tuned_model(wanted, self.origin, native_dtype_of(found.manifest))
        expected, judged = comparison.run(tuned.model, getattr(self.origin, "folder", None))
        before = comparison.metrics(judged)
        made_by = tuned.made_by
        del tuned
        self.report("running the package" + (f", and measuring it on {test.source}" if test else ""))
        outputs, judged = comparison.run(_model_of(found.folder, wanted.base), None)
        if expected is not None and outputs is not None:
            found = dataclasses.replace(found, agreement=agreement(expected, outputs, made_by))
            self._require_agreement(found)
        if before is None or judged is None:
            return found
        record = {"metrics": {"test": before}, "share_of_squared_norm_kept": round(found.kept, 6)}
        measured, metrics = found.folder.with_name("measured"), {"test": comparison.metrics(judged) or {}}
        training = {"before_packaging": record, **comparison.results(judged)}
        manifest = rewrite_package(found.folder, measured, metrics, training)
        shutil.rmtree(found.folder)
        return dataclasses.replace(found, folder=measured, manifest=manifest)

    def _require_agreement(self, found: Extracted) -> None:
        from sparsehub.convert.output_comparison import TOLERANCE

        agreement = found.agreement
        lossless = self.budget is None and self.value_dtype is None
        if lossless and agreement is not None and not agreement.agrees:
            raise BackboneError(
                "a lossless package gives other outputs than the tuned model, so more than weights was changed",
                found=f"a probe batch is {agreement.difference:.3g} apart ({agreement.against})",
                expected=f"at most {TOLERANCE:g} of the largest output, {agreement.largest:.3g}",
                fix="give the backbone that it was tuned from; --no-check writes the package all the same",
            )


@dataclass(frozen=True)
class _Comparison:
    """What is run through the tuned model and through the package."""

    task: TaskSpec
    base: Checkpoint
    batch: Mapping[str, Tensor] | None  # a probe
    split: Split | None  # test rows

    @classmethod
    def of(
        cls, wanted: Extraction, test: _TestRows | None, report: Callable[[str], None], *, checks: bool
    ) -> _Comparison:
        from sparsehub.backbone.backbone import read_config
        from sparsehub.backbone.tokenizer import load_tokenizer
        from sparsehub.convert.output_comparison import probe_batch
        from sparsehub.training.data import load_split

        split = load_split(wanted.task, test.source, test.layout, report) if test is not None else None
        config = read_config(wanted.base)
        batch = probe_batch(load_tokenizer(wanted.base), config, wanted.task) if checks else None
        return cls(wanted.task, wanted.base, batch, split)

    def run(self, model: nn.Module, own: Path | None) -> tuple[Tensor | None, Outputs | None]:
        """A model's outputs for the probe and for the test rows. own: the folder of its own tokenizer, if any."""
        from sparsehub.convert.output_comparison import outputs

        found = None if self.batch is None else outputs(model, self.batch, self.task)
        return found, None if self.split is None else self._judged(model, self.split, own)

    def metrics(self, found: Outputs | None) -> Metrics | None:
        """The task's metrics of outputs for the test rows."""
        from sparsehub.training.metrics import compute

        return None if found is None else compute(self.task, found.logits, found.targets)

    def results(self, found: Outputs) -> dict[str, Any]:
        """Where the package is right on the test rows, as its manifest says it."""
        from sparsehub.package.results import RESULTS, stated
        from sparsehub.training.split_results import split_results

        its = split_results(self.task, "test", found)
        return {} if its is None else {RESULTS: stated(its)}

    def _judged(self, model: nn.Module, split: Split, own: Path | None) -> Outputs:
        from sparsehub.backbone.tokenizer import load_tokenizer
        from sparsehub.convert.tokenizer_check import has_tokenizer
        from sparsehub.training.evaluation import outputs_of

        tokenizer = load_tokenizer(self.base)
        if own is not None and has_tokenizer(own):
            padding = tokenizer.pad_token
            tokenizer = load_tokenizer(dataclasses.replace(self.base, id=str(own), folder=own))
            tokenizer.pad_token = padding  # what the model takes for padding
        return outputs_of(model, self.task, tokenizer, split)


def _model_of(folder: Path, base: Checkpoint) -> nn.Module:
    from sparsehub.package import read_package
    from sparsehub.package.materialize import native_dtype, task_model_of

    package = read_package(folder)
    return task_model_of(package, base, dtype=native_dtype(package)).model
