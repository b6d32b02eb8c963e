"""What the Hugging Face Hub reads of a package: the front matter of its card, and `.eval_results`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from sparsehub.package.summary import MetricsSummary, PackageSummary, SplitScores
from sparsehub.package.task_spec import EMBEDDING, MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

EVAL_RESULTS = ".eval_results/sparsehub.yaml"
_PIPELINES = {
    REGRESSION: "text-classification",
    MULTI_LABEL: "text-classification",
    EMBEDDING: "sentence-similarity",
}  # kinds for which the Hub has another name
# Names of metrics at huggingface.co/metrics, where they are others than ours.
_METRICS = {
    "macro_f1": "f1",
    "micro_f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
_MODEL = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_ORDER = ["library_name", "base_model", "base_model_relation", "pipeline_tag", "tags", "license", "datasets", "metrics"]


def front_matter(package: PackageSummary) -> str:
    """The YAML at the top of the card: by it a package is found, and listed under its base model, on the Hub."""
    return _card_data(package).to_yaml(original_order=_ORDER)


def _card_data(package: PackageSummary) -> ModelCardData:
    from huggingface_hub import ModelCardData

    names, results = package.metrics.declared, _eval_results(package)
    measured = bool(names and results)
    return ModelCardData(
        library_name="sparsehub",
        pipeline_tag=_pipeline(package),
        tags=["sparsehub", "sparse-delta"],
        license=package.license or None,
        datasets=list(package.datasets) or None,
        metrics=list(dict.fromkeys(_METRICS.get(name, name) for name in names)) if measured else None,
        model_name=package.name if measured else None,
        eval_results=results if measured else None,
        **_base_model(package),
    )


def eval_results(package: PackageSummary) -> dict[str, bytes]:
    """`.eval_results` for the leaderboards of the data sets on the Hub that a package was measured on; often none.

    Called by the Hugging Face hub where it publishes a package. Returns a file's contents by its path.
    """
    entries = []
    for split in _measured(package.metrics):
        metric = next((name for name in package.task.metrics if name in split.scores), None)
        if split.dataset.id and metric is not None:
            dataset = {"id": split.dataset.id, "task_id": split.dataset.configuration or "default"}
            notes = f"{metric}, split {split.dataset.split}, {package.name} {package.version}"
            entries.append({"dataset": dataset, "value": split.scores[metric], "notes": notes})
    return {EVAL_RESULTS: yaml.safe_dump(entries, sort_keys=False).encode()} if entries else {}


def _base_model(package: PackageSummary) -> dict[str, Any]:
    """The lines that list a package under its base model; none where that is a folder, which nobody could find."""
    backbone = package.backbone
    known = _MODEL.fullmatch(backbone.id) and ("/" in backbone.id or backbone.revision)
    return {"base_model": backbone.id, "base_model_relation": "adapter"} if known else {}


def _eval_results(package: PackageSummary) -> list[EvalResult]:
    return [
        _eval_result(package, split, metric, value)
        for split in _measured(package.metrics)
        for metric, value in split.scores.items()
    ]


def _eval_result(package: PackageSummary, split: SplitScores, metric: str, value: float) -> EvalResult:
    from huggingface_hub import EvalResult

    dataset = split.dataset
    return EvalResult(
        task_type=_pipeline(package),
        task_name=package.task.kind,
        dataset_type=dataset.id or "file",
        dataset_name=dataset.id or dataset.source or split.split,
        dataset_config=dataset.configuration or None,
        dataset_split=dataset.split or split.split,
        metric_type=_METRICS.get(metric, metric),
        metric_name=metric,
        metric_value=value,
    )


def _pipeline(package: PackageSummary) -> str:
    return _PIPELINES.get(package.task.kind, package.task.kind)


def _measured(metrics: MetricsSummary) -> list[SplitScores]:
    return [split for split in metrics.splits if split.scores and not split.is_baseline]
