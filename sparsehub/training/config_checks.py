"""What the settings of a training run owe each other; `TrainConfig` asks these when it is made."""

from __future__ import annotations

import importlib.util
from typing import Any

from sparsehub.errors import MissingExtraError, UsageError
from sparsehub.package.manifest import HEAD_METHOD
from sparsehub.package.task_spec import (
    BY_ROW_KINDS,
    COSINE,
    EMBEDDING,
    JOINT,
    LINEAR,
    LINEAR_KINDS,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    REGRESSION,
    TEXT_GENERATION,
    label_columns,
)
from sparsehub.selection.depth import depth, margin_of
from sparsehub.settings import shown
from sparsehub.training.method import method_named


def check_settings(config: Any) -> None:
    """Raises `UsageError` for settings of a `TrainConfig` that do not go together."""
    least, most, wanted = (2, 3, "two or three") if config.kind == EMBEDDING else (1, 2, "one or two")
    if not least <= len(config.text) <= most:
        raise UsageError(f"give {wanted} text fields", found=", ".join(config.text) or "none")
    if (config.kind == MULTIPLE_CHOICE) != bool(config.choices):
        fix = f"for example {shown('choices')} choice1,choice2"
        raise UsageError(f"choices belong to {MULTIPLE_CHOICE}, and it needs them", fix=fix)
    if config.density is not None and config.nnz is not None:
        both = f"{shown('density')} and {shown('nnz')}"
        raise UsageError(f"{both} are two ways to say the same", fix="give one of them")
    _check_layers(config)
    for name in ("patience", "metric"):
        if getattr(config, name) and config.validation is None:
            raise UsageError(f"{shown(name)} needs a validation split", fix=f"give {shown('validation')}")
    if config.kind == MULTI_LABEL and len(label_columns(config.kind, config.label)) > 1 and config.labels:
        both = f"{shown('label')} names a field for each label, so these are the labels"
        raise UsageError(both, found=f"{shown('labels')} {','.join(config.labels)}", fix="leave it out")
    _check_tracker(config.report_to)
    _check_examples(config)
    _check_generation(config)
    _check_embedding(config)
    _check_head(config)


def _check_layers(config: Any) -> None:
    """Raises `UsageError` for layers that cannot be, and where nothing can say how few are enough."""
    if margin_of(config.layers) is None:
        depth(config.layers)
        return
    said = f"{shown('layers')} {config.layers}"
    if config.validation is None:
        raise UsageError(f"{said} compares scores on a validation split", fix=f"give {shown('validation')}")
    if config.density == 0 or config.method == HEAD_METHOD or not method_named(config.method).packages:
        fix = f"leave {shown('layers')} out"
        raise UsageError(f"{said} has nothing to compare: no weight of a layer changes", found=config.method, fix=fix)
    if config.include:
        fix = f"name the layers: {shown('layers')} last:2"
        raise UsageError(
            f"{said} tries layers that {shown('include')} may have nothing of", found=config.include, fix=fix
        )


def _check_examples(config: Any) -> None:
    """Raises `UsageError` where there are no right and wrong test rows to show."""
    if config.examples and config.kind not in BY_ROW_KINDS:
        raise UsageError(f"rows of a {config.kind} are not right or wrong", fix=f"leave {shown('examples')} out")
    if config.examples and config.test is None:
        raise UsageError(f"{shown('examples')} shows test rows, and there are none", fix=f"give {shown('test')}")


def _check_tracker(name: str | None) -> None:
    """Raises `MissingExtraError` for a tracker that is not installed: hours later, nobody would want to hear it."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise MissingExtraError(f"{shown('report_to')}: {name} is not installed", fix=f"pip install {name}")


def _check_generation(config: Any) -> None:
    """Raises `UsageError` for settings that do not go with a generation of text, or with it alone."""
    generates = config.kind == TEXT_GENERATION
    if generates and (len(config.text) > 1 or config.labels):
        fix = f"leave {shown('labels')} out"
        raise UsageError("a text generation has one text field and no labels", fix=fix)
    if config.packing and not generates:
        raise UsageError(f"{shown('packing')} belongs to {TEXT_GENERATION}", found=config.kind, fix="leave it out")


def _check_embedding(config: Any) -> None:
    """Raises `UsageError` for settings that do not go with an embedding."""
    if config.kind != EMBEDDING:
        return
    for name in ("labels", "head", "pair"):
        if getattr(config, name):
            raise UsageError(f"an embedding has no {shown(name)}", fix="leave it out")
    if len(config.text) > 2 and config.label != "label":
        raise UsageError(f"triplets have no score, and {shown('label')} names one", found=config.label)
    if config.method == HEAD_METHOD:
        raise UsageError("an embedding has no head of its own", fix="choose another method")


def _check_head(config: Any) -> None:
    """Raises `UsageError` for settings that do not fit the task's head."""
    if config.head == LINEAR and config.kind not in LINEAR_KINDS:
        raise UsageError(f"a {config.kind} has no linear head", fix=f"leave {shown('head')} out")
    for name in ("pooling", "normalize", "pair"):
        pooled = config.has_linear_head or config.kind == EMBEDDING
        if getattr(config, name) and not pooled:
            raise UsageError(f"{shown(name)} belongs to a linear head", found=f"a {config.kind} without one")
    if config.pair and config.pair != JOINT and (len(config.text) < 2 or config.kind == MULTIPLE_CHOICE):
        raise UsageError(f"{shown('pair')} {config.pair} needs two text fields that are not choices")
    if config.pair == COSINE and config.kind != REGRESSION:
        raise UsageError(f"the cosine of a pair is for a {REGRESSION}", found=config.kind)
    if config.method == HEAD_METHOD and (config.density or config.nnz):
        fix = f"leave {shown('density' if config.density else 'nnz')} out"
        raise UsageError(f"with {shown('method')} {HEAD_METHOD} nothing in the backbone changes", fix=fix)
    if config.method == HEAD_METHOD and config.kind == TEXT_GENERATION:
        raise UsageError("a text generation has no head of its own", fix="choose another method")
