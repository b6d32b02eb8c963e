"""What a package says about itself: one summary, which the card, the HTML report, the pictures and the terminal render.

It is made from the manifest alone, without torch. Its texts are those of the manifest, not escaped for any renderer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsehub.package.delta_stats import Cell, HeatMap, Sizes, heat_map, sizes
from sparsehub.package.describe import BASELINES, depth_text, limits, metrics_note, training_text, values_text
from sparsehub.package.manifest import BackboneRef, Lineage, Manifest
from sparsehub.package.results import (
    LearningCurve,
    QuantisedScores,
    SplitResults,
    learning_curve_of,
    quantised_of,
    results_of,
)
from sparsehub.package.task_spec import NONE, TaskSpec
from sparsehub.package.usage import UsageSnippets, usage_snippets

_HUB_DATASET = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?:([\w.-]+)")  # owner/name[:configuration]:split


@dataclass(frozen=True)
class DatasetRef:
    """Where the rows of a split came from."""

    source: str  # as the manifest records it: a file, or owner/name[:configuration]:split; empty where it does not say
    id: str = ""  # owner/name on the Hugging Face Hub; empty for a file, as the next two are
    configuration: str = ""
    split: str = ""


@dataclass(frozen=True)
class SplitScores:
    """How good the package, or a baseline, is on one split."""

    split: str  # as the manifest names it: `test`, or `test (majority)` for a baseline
    scores: Mapping[str, float]  # by metric
    dataset: DatasetRef
    data: str  # the data set and its number of rows in words, as far as they are known; empty for a baseline
    is_baseline: bool


@dataclass(frozen=True)
class MetricsSummary:
    """The scores of every split, those of the baselines among them."""

    declared: tuple[str, ...]  # the task's own metrics that some split has, the deciding one first
    measured: tuple[str, ...]  # every metric that some split has, in the order of the splits
    splits: tuple[SplitScores, ...]
    note: str  # what they were measured on and what the baselines are, in Markdown


@dataclass(frozen=True)
class ChangesSummary:
    """What the delta changes in the backbone."""

    method: str  # `head` where nothing changes
    nnz: int  # 0 where nothing changes
    density: float
    value_kind: str  # `add` or `set`
    values: str  # how the values are stored, and what they do to the weights
    depth: str  # from which layer on; empty where it is not known
    parameters: Mapping[str, Cell]  # by name, changed parameters only
    heat_map: HeatMap


@dataclass(frozen=True)
class SizeRow:
    """One line of the table that compares the package's bytes with other ways to ship a task."""

    what: str
    size: int  # bytes
    note: str


@dataclass(frozen=True)
class PackageSummary:
    """All that is shown of a package, by section."""

    name: str
    version: str
    digest: str
    task: TaskSpec
    has_head: bool  # false where the backbone's own head is used, as in text generation
    backbone: BackboneRef
    usage: UsageSnippets
    metrics: MetricsSummary
    learning_curve: LearningCurve | None
    results: SplitResults | None  # of one split, label by label
    quantised: Mapping[str, QuantisedScores]  # by kind of weights, where it was measured on them
    changes: ChangesSummary
    sizes: Sizes
    size_rows: tuple[SizeRow, ...]
    files: Mapping[str, int]  # bytes by file name; empty until the files are written
    training: Mapping[str, str]  # how it was made, by setting
    datasets: tuple[str, ...]  # ids on the Hugging Face Hub of all data that it was made and measured with
    lineage: Lineage
    limits: tuple[str, ...]  # sentences
    license: str  # empty where none is stated

    @property
    def starts(self) -> dict[str, float]:
        """What the metric of the learning curve was before training, by the baseline's name: the line to beat."""
        metric = self.learning_curve.metric if self.learning_curve is not None else ""
        beside = {split.split.removeprefix("validation ").strip("()"): split for split in self.metrics.splits}
        found = {name: beside[name].scores for name in ("probe", "backbone") if name in beside}
        return {name: scores[metric] for name, scores in found.items() if metric in scores}


def summarize(manifest: Manifest) -> PackageSummary:
    """The summary of a package, or of a draft whose files are written but whose card is not."""
    found = sizes(manifest)
    return PackageSummary(
        name=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        task=manifest.task,
        has_head=manifest.task.head.type != NONE,
        backbone=manifest.backbone,
        usage=usage_snippets(manifest),
        metrics=_metrics(manifest),
        learning_curve=learning_curve_of(manifest.training),
        results=results_of(manifest.training, manifest.task),
        quantised=quantised_of(manifest.training),
        changes=_changes(manifest),
        sizes=found,
        size_rows=_size_rows(found, manifest.nnz),
        files={name: record.size for name, record in sorted(manifest.files.items())},
        training=training_text(manifest),
        datasets=_datasets(manifest),
        lineage=manifest.lineage,
        limits=limits(manifest),
        license=manifest.license,
    )


def dataset_of(manifest: Manifest, split: str) -> DatasetRef:
    """Where the rows of a split came from; an empty source where the manifest does not say."""
    source = _data_record(manifest, split).get("source")
    if not isinstance(source, str):
        return DatasetRef("")
    found = _HUB_DATASET.fullmatch(source)
    return DatasetRef(source, found[1], found[2] or "", found[3]) if found else DatasetRef(source)


def _metrics(manifest: Manifest) -> MetricsSummary:
    found = {**manifest.metrics, **_baselines(manifest)}
    measured = tuple(dict.fromkeys(name for scores in found.values() for name in scores))
    return MetricsSummary(
        declared=tuple(name for name in manifest.task.metrics if name in measured),
        measured=measured,
        splits=tuple(_split_scores(manifest, split, scores) for split, scores in found.items()),
        note=metrics_note(manifest),
    )


def _baselines(manifest: Manifest) -> dict[str, dict[str, float]]:
    """The baselines of `training.baselines`, which anybody may have written, that `metrics` does not have."""
    stated = manifest.training.get("baselines")
    found = {
        f"{split} ({name})": {metric: value for metric, value in scores.items() if isinstance(value, float)}
        for split, row in (stated.items() if isinstance(stated, dict) else ())
        for name, scores in (row.items() if isinstance(row, dict) else ())
        if isinstance(scores, dict) and f" ({name})" in BASELINES
    }
    return {split: scores for split, scores in found.items() if split not in manifest.metrics}


def _split_scores(manifest: Manifest, split: str, scores: Mapping[str, float]) -> SplitScores:
    dataset, is_baseline = dataset_of(manifest, split), split.endswith(BASELINES)
    rows = _data_record(manifest, split).get("rows")
    counted = dataset.source and isinstance(rows, int)
    data = f"{dataset.source}, {rows:,} rows" if counted else dataset.source
    return SplitScores(split, scores, dataset, "" if is_baseline else data, is_baseline)


def _changes(manifest: Manifest) -> ChangesSummary:
    delta = manifest.delta
    return ChangesSummary(
        method=manifest.method,
        nnz=manifest.nnz,
        density=manifest.density,
        value_kind=delta.value_kind if delta is not None else "add",
        values=values_text(manifest),
        depth=depth_text(manifest),
        parameters={name: Cell().plus(touched) for name, touched in manifest.touched.items()},
        heat_map=heat_map(manifest),
    )


def _size_rows(found: Sizes, nnz: int) -> tuple[SizeRow, ...]:
    rows = [
        *([SizeRow("delta", found.delta, f"{found.delta / nnz:.2f} bytes an entry")] if nnz else []),
        SizeRow("head", found.head, ""),
        SizeRow("the whole backbone", found.full, f"{found.full_ratio:.0f} times delta and head"),
    ]
    if found.lora_8:
        note = f"the delta is as large as LoRA of rank {found.lora_rank:.1f}"
        rows.append(SizeRow("LoRA, rank 8, 16 bits, on the same matrices", found.lora_8, note))
    return tuple(rows)


def _datasets(manifest: Manifest) -> tuple[str, ...]:
    data = manifest.training.get("data")
    splits = list(data) if isinstance(data, dict) else []
    return tuple(sorted({found.id for split in splits if (found := dataset_of(manifest, split)).id}))


def _data_record(manifest: Manifest, split: str) -> dict[str, Any]:
    """What the manifest records of a split's data; empty where it records nothing, or something else."""
    data = manifest.training.get("data")
    record = data.get(split) if isinstance(data, dict) else None
    return record if isinstance(record, dict) else {}
