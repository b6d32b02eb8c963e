"""The sentences of a package's summary, made from its manifest.

Names, labels and settings are quoted as they stand in the manifest, which anybody may have written: each renderer
escapes them for the place where it puts them.
"""

from __future__ import annotations

from typing import Any

from sparsehub.package.manifest import CONFIGURATION, Manifest
from sparsehub.package.results import LEARNING_CURVE, QUANTISED, RESULTS, QuantisedScores
from sparsehub.package.task_spec import (
    COSINE,
    EMBEDDING,
    FIRST,
    JOINT,
    LAST,
    LINEAR,
    MAX,
    MEAN,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    NONE,
    SEPARATE,
    TEXT_GENERATION,
    TRANSFORMERS,
    TaskSpec,
)

# The end of a split's name, where its metrics are those of answering the commonest label, or of the untouched backbone.
BASELINES = (" (majority)", " (backbone)", " (probe)")
SIGNIFICANT = 0.05  # a smaller p is more than chance
POOLED = {MEAN: "the mean", FIRST: "the first", LAST: "the last", MAX: "the maximum"}
PAIRED = {
    JOINT: "",
    SEPARATE: "; each text of a pair is read alone",
    COSINE: "; each text of a pair is read alone, and their cosine is scored",
}
_SETTINGS = {"trained": "entries trained", "selection": "entries chosen in"}  # settings whose name says too little


def metrics_note(manifest: Manifest) -> str:
    """What the metrics of a package were measured on, and what the baselines beside them are; in Markdown."""
    if manifest.task.kind == TEXT_GENERATION:
        baseline = "`backbone` is the backbone without it. An exact match is a whole completion, token for token."
    else:
        baseline = "`majority` answers the commonest training label (or the mean)."
    if manifest.task.kind == MULTI_LABEL:
        baseline += " F1 is that of the labels over their thresholds, the average precision that of the scores."
    if manifest.task.kind == EMBEDDING:
        baseline = "`backbone` is the backbone without it."
    if manifest.task.head.type == LINEAR:
        baseline += " `probe` is a linear head fitted on the backbone as it is."
    return f"Of the package as written, rounding included. {baseline}"


def values_text(manifest: Manifest) -> str:
    """How the delta's values are stored, and what they do to the weights."""
    if manifest.delta is None:
        return "none: the backbone's weights stay as they are"
    effect = "added to the weights" if manifest.delta.value_kind == "add" else "put in place of weights"
    return f"{manifest.delta.value_dtype}, {effect}"


def depth_text(manifest: Manifest) -> str:
    """From where on in the backbone's depth the delta changes it; empty where nothing changes or nobody knows."""
    if manifest.delta is None or manifest.delta.layers is None:
        return ""
    first, count = manifest.delta.layers
    if first < 0:
        return "what comes before the layers too"
    return f"from layer {first} on, counted from 0, of {count}" if first < count else "what comes after the layers"


def head_text(task: TaskSpec) -> str:
    """What turns the backbone's states into the task's answers, in a few words."""
    head = task.head
    if task.kind == EMBEDDING:
        unit = ", scaled to unit length" if head.normalize else ""
        return f"none: {POOLED[head.pooling or MEAN]} of a text's states{unit}"
    if head.type == NONE:
        return "none: the backbone's own output layer"
    if head.type == TRANSFORMERS:
        return "that of transformers"
    pooled = f"one linear layer on {POOLED[head.pooling or '']} of a sequence's states"
    unit = ", scaled to unit length" if head.normalize else ""
    return pooled + unit + PAIRED[head.pair or JOINT]


def thresholds_text(task: TaskSpec, shown: int) -> str:
    """From which probability on a label is given; empty for a task of one label a row. shown: so many labels."""
    each = [f"{label} {least:.3g}" for label, least in zip(task.labels, task.thresholds, strict=False)]
    return ", ".join(each[:shown]) + (f" and {len(each) - shown} more" if len(each) > shown else "")


def training_text(manifest: Manifest) -> dict[str, str]:
    """How the package was made, by the name of the setting."""
    elsewhere = ("baselines", CONFIGURATION, LEARNING_CURVE, RESULTS, QUANTISED)
    told = {name: value for name, value in manifest.training_stated.items() if name not in elsewhere}
    stated = {_SETTINGS.get(name, name): _flat(value, name) for name, value in told.items()}
    if isinstance(data := manifest.training.get("data"), dict) and data:
        stated["data"] = "; ".join(f"{split}: {_rows(record)}" for split, record in data.items())
    return stated


def gap_text(than: str, better: int, worse: int, p: float, test: str) -> str:
    """On how many rows something is better and worse than something else, and whether chance alone explains it."""
    verdict = "more than chance" if p < SIGNIFICANT else "chance alone explains it"
    return f"better on {better:,} rows than {than}, worse on {worse:,}: {verdict} (p = {p:.3g}, {test})"


def quantised_text(its: QuantisedScores) -> str:
    """What a measurement on quantised weights says of its rows; empty where rows are not judged by themselves."""
    return gap_text("on the weights as stored", its.better, its.worse, its.p, its.test) if its.test else ""


def limits(manifest: Manifest) -> tuple[str, ...]:
    """What the task cannot do, in sentences."""
    task = manifest.task
    sentences = ["It fits the backbone of this fingerprint and no other, not even a fine-tuned copy of it."]
    if task.kind == TEXT_GENERATION:
        sentences.append(f"It was trained on texts of at most {task.max_length} tokens; longer ones it has not seen.")
    else:
        sentences.append(f"Text beyond {task.max_length} tokens is refused, or cut where the caller says so.")
    if task.kind == MULTI_LABEL:
        sentences.append("It knows these labels only; a text may get several of them, or none.")
    elif task.labels and task.kind != MULTIPLE_CHOICE:
        sentences.append("It knows these labels only: text that fits none of them gets one of them all the same.")
    splits = [split for split in manifest.metrics if not split.endswith(BASELINES)]
    measured = f"was measured on {' and '.join(splits)} alone" if splits else "was not measured"
    return (*sentences, f"It {measured}; on other data it may do worse.")


def _rows(record: Any) -> str:
    """A split of the training data: its rows and its source where the record has no more than these."""
    if isinstance(record, dict) and isinstance(record.get("rows"), int) and set(record) <= {"rows", "source"}:
        return f"{record['rows']:,} rows" + (f" of {record['source']}" if record.get("source") else "")
    return _flat(record, "")


def _flat(value: Any, setting: str) -> str:
    """A setting on one line; a seed is a name, so it gets no thousands separators."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {_flat(item, setting)}" for name, item in value.items())
    return f"{value:,}" if type(value) is int and setting != "seed" else str(value)
