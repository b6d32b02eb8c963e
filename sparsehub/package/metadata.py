"""What the Hugging Face Hub reads of a package: the head of its card, and `.eval_results`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from sparsehub.package.manifest import REGRESSION, Manifest

EVAL_RESULTS = ".eval_results/sparsehub.yaml"
# The end of a split's name, where metrics are those of answering the commonest label, or of the untouched backbone.
BASELINES = (" (majority)", " (backbone)")
PIPELINES = {REGRESSION: "text-classification"}  # kinds that the Hub calls otherwise
# Names of metrics at huggingface.co/metrics, where they are others than ours.
METRICS = {"macro_f1": "f1", "matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
_MODEL = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_DATASET = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?:([\w.-]+)")  # owner/name[:configuration]:split


@dataclass(frozen=True)
class Dataset:
    """A data source as the manifest records it. id: on the Hub, empty for a file."""

    source: str
    id: str = ""
    configuration: str = ""
    split: str = ""


def front_matter(manifest: Manifest) -> str:
    """The YAML block at the top of the card, by which a package is found, and shown under its base model."""
    datasets = sorted({found.id for split in _splits(manifest) if (found := dataset_of(manifest, split)).id})
    table: dict[str, Any] = {
        "library_name": "sparsehub",
        **base_model(manifest),
        "pipeline_tag": PIPELINES.get(manifest.task.kind, manifest.task.kind),
        "tags": ["sparsehub", "sparse-delta"],
        **({"license": manifest.license} if manifest.license else {}),
        **({"datasets": datasets} if datasets else {}),
        **_metrics(manifest),
    }
    text = yaml.safe_dump(table, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{text}---"


def base_model(manifest: Manifest) -> dict[str, str]:
    """The lines that put a package under its base model; none for a folder, which nobody finds."""
    backbone = manifest.backbone
    known = _MODEL.fullmatch(backbone.id) and ("/" in backbone.id or backbone.revision)
    return {"base_model": backbone.id, "base_model_relation": "adapter"} if known else {}


def dataset_of(manifest: Manifest, split: str) -> Dataset:
    """Where the rows of a split came from; an empty source where the manifest does not say."""
    data = manifest.training.get("data")
    record = data.get(split) if isinstance(data, dict) else None
    source = record.get("source") if isinstance(record, dict) else None
    if not isinstance(source, str):
        return Dataset("")
    found = _DATASET.fullmatch(source)
    return Dataset(source, found[1], found[2] or "", found[3]) if found else Dataset(source)


def eval_results(manifest: Manifest) -> dict[str, bytes]:
    """`.eval_results` for the leaderboards of the data sets on the Hub that a package was measured on; often none."""
    entries = []
    for split in _measured(manifest):
        dataset, metric = dataset_of(manifest, split), _first(manifest, split)
        if dataset.id and metric is not None:
            task = dataset.configuration or "default"
            entry = {"dataset": {"id": dataset.id, "task_id": task}, "value": manifest.metrics[split][metric]}
            notes = f"{metric}, split {dataset.split}, {manifest.name} {manifest.version}"
            entries.append({**entry, "notes": notes})
    return {EVAL_RESULTS: yaml.safe_dump(entries, sort_keys=False).encode()} if entries else {}


def _metrics(manifest: Manifest) -> dict[str, Any]:
    names = [name for name in manifest.task.metrics if any(name in row for row in manifest.metrics.values())]
    results = [_result(manifest, split) for split in _measured(manifest)]
    if not names or not results:
        return {}
    index = [{"name": manifest.name, "results": results}]
    return {"metrics": list(dict.fromkeys(METRICS.get(name, name) for name in names)), "model-index": index}


def _result(manifest: Manifest, split: str) -> dict[str, Any]:
    """One entry of the model index: the measured metrics of one split."""
    kind, dataset, row = manifest.task.kind, dataset_of(manifest, split), manifest.metrics[split]
    described = {"name": dataset.id or dataset.source or split, "type": dataset.id or "file"}
    configuration = {"config": dataset.configuration} if dataset.configuration else {}
    return {
        "task": {"type": PIPELINES.get(kind, kind), "name": kind},
        "dataset": {**described, **configuration, "split": dataset.split or split},
        "metrics": [{"type": METRICS.get(name, name), "name": name, "value": value} for name, value in row.items()],
    }


def _measured(manifest: Manifest) -> list[str]:
    return [split for split, row in manifest.metrics.items() if row and not split.endswith(BASELINES)]


def _splits(manifest: Manifest) -> list[str]:
    data = manifest.training.get("data")
    return list(data) if isinstance(data, dict) else []


def _first(manifest: Manifest, split: str) -> str | None:
    return next((name for name in manifest.task.metrics if name in manifest.metrics[split]), None)
