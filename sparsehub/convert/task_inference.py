"""The task that a checkpoint was fine-tuned for, from its configuration and from what the user says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sparsehub.errors import UsageError
from sparsehub.files import strict_json
from sparsehub.package.manifest_builder import metric_names
from sparsehub.package.pooling import module_kinds, normalizes, pooling_of
from sparsehub.package.task_spec import (
    EMBEDDING,
    EVEN,
    KINDS,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    NONE,
    PROBLEM_TYPES,
    REGRESSION,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    HeadSpec,
    TaskSpec,
)
from sparsehub.schema import unknown_name

_ENDS = {
    "ForSequenceClassification": TEXT_CLASSIFICATION,
    "ForTokenClassification": TOKEN_CLASSIFICATION,
    "ForMultipleChoice": MULTIPLE_CHOICE,
    "ForCausalLM": TEXT_GENERATION,
    "LMHeadModel": TEXT_GENERATION,
}
CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class TaskHints:
    """What the user says of a task; what is None or empty comes from the checkpoint."""

    kind: str | None = None
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    labels: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    max_length: int = 256


def task_of(hints: TaskHints, folder: Path | None) -> TaskSpec:
    """The task of the checkpoint in `folder`; raises `UsageError` where neither says what kind it is.

    Labels come from the configuration (`id2label`) unless the hints have them.
    """
    config = _config(folder)
    kind = hints.kind or (EMBEDDING if folder and module_kinds(folder) else _kind(config))
    if kind not in KINDS:
        raise UsageError(unknown_name("kind", kind, list(KINDS)))
    if (kind == MULTIPLE_CHOICE) != bool(hints.choices):
        raise UsageError(
            f"choices belong to {MULTIPLE_CHOICE}, and it needs them", fix="give --choices choice1,choice2"
        )
    unlabelled = kind in (REGRESSION, TEXT_GENERATION, EMBEDDING)
    labels = () if unlabelled else hints.choices or hints.labels or _labels(config)
    if not unlabelled and len(labels) < 2:
        raise UsageError("nothing says what the labels are", fix="give --labels, in the order of the head's outputs")
    label = "" if kind in (TEXT_GENERATION, EMBEDDING) and hints.label == TaskHints.label else hints.label
    task = TaskSpec(
        kind=kind,
        labels=tuple(labels),
        problem_type=PROBLEM_TYPES[kind],
        text_fields=hints.text,
        label_field=label,
        max_length=hints.max_length,
        metrics=metric_names(kind, len(labels), bool(label)),
        choice_fields=hints.choices,
        thresholds=_thresholds(config, len(labels)) if kind == MULTI_LABEL else (),
    )
    return dataclasses.replace(task, head=_pooled(folder)) if kind == EMBEDDING and folder is not None else task


def _pooled(folder: Path) -> HeadSpec:
    """How a checkpoint's folder makes vectors; raises `UsageError` for modules that no package holds."""
    others = [kind for kind in module_kinds(folder) if kind not in ("Transformer", "Pooling", "Normalize")]
    if others:
        expected = "Transformer, Pooling, Normalize"
        raise UsageError("a package holds no such module of an embedding", found=", ".join(others), expected=expected)
    return HeadSpec(NONE, pooling_of(folder), normalize=normalizes(folder))


def _config(folder: Path | None) -> dict[str, Any]:
    path = folder / CONFIG_FILE if folder else None
    found = strict_json(path.read_bytes(), CONFIG_FILE) if path and path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _kind(config: dict[str, Any]) -> str:
    names = config.get("architectures") or ["no architecture"]
    kind = next((kind for end, kind in _ENDS.items() if str(names[0]).endswith(end)), None)
    if kind is None:
        known = ", ".join(_ENDS)
        raise UsageError(
            "the checkpoint does not say what kind of task it was tuned for",
            found=names[0],
            expected=known,
            fix="give --kind",
        )
    problem = config.get("problem_type")
    if kind == TEXT_CLASSIFICATION and problem == PROBLEM_TYPES[MULTI_LABEL]:
        return MULTI_LABEL
    alone = len(config.get("id2label") or ("0", "1")) == 1
    return REGRESSION if kind == TEXT_CLASSIFICATION and (problem == "regression" or alone) else kind


def _thresholds(config: dict[str, Any], labels: int) -> tuple[float, ...]:
    """Those that `sparsehub materialize` writes into a configuration; a half where a checkpoint says nothing."""
    stated = config.get("thresholds")
    if stated is None:
        return (EVEN,) * labels
    sound = isinstance(stated, list) and len(stated) == labels
    if not sound or not all(isinstance(number, float) and 0 <= number <= 1 for number in stated):
        raise UsageError(
            "the checkpoint's thresholds are not those of its labels", found=str(stated)[:80],
            expected=f"{labels} probabilities", fix=f"take them out of its {CONFIG_FILE}",
        )  # fmt: skip
    return tuple(stated)


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    table = config.get("id2label") or {}
    return tuple(str(table[key]) for key in sorted(table, key=int))
