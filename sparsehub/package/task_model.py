"""Whole task models of transformers on a backbone, for training and for writing plain checkpoints."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparsehub.backbone import Backbone, Checkpoint
from sparsehub.backbone.backbone import adopt, adopt_language_model, load_module, read_config
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import BackboneError
from sparsehub.package.linear_head import BIAS, WEIGHT
from sparsehub.package.task_spec import (
    EMBEDDING,
    LINEAR,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    REGRESSION,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    TaskSpec,
)

_AUTO = {
    TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    MULTI_LABEL: "AutoModelForSequenceClassification",
    REGRESSION: "AutoModelForSequenceClassification",
    MULTIPLE_CHOICE: "AutoModelForMultipleChoice",
    TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    TEXT_GENERATION: "AutoModelForCausalLM",
    EMBEDDING: "AutoModel",
}


@dataclass(frozen=True)
class TaskModel:
    """A whole task model, whose base model lies in an arena."""

    model: nn.Module  # transformers' AutoModelFor..., a `LinearHeadModel` or an `EmbeddingModel`
    backbone: Backbone  # its base model
    head: tuple[str, ...]  # names, in `model`, of every parameter that the backbone's checkpoint lacks


def auto_class(kind: str) -> Any:
    """The transformers Auto class of a task kind."""
    import transformers

    return getattr(transformers, _AUTO[kind])


def task_config(config: Any, task: TaskSpec, pad_token_id: int | None) -> Any:
    """A copy of the backbone's transformers configuration, with the task's labels and problem type."""
    config = copy.deepcopy(config)
    if task.kind in (TEXT_GENERATION, EMBEDDING):
        return config  # nothing in it depends on the task
    labels = task.labels if task.kind in (TEXT_CLASSIFICATION, MULTI_LABEL, TOKEN_CLASSIFICATION) else ("score",)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    # transformers refuses to load a single label with a problem type, and its multiple choice models never read it
    config.problem_type = None if task.kind == MULTIPLE_CHOICE else task.problem_type
    if task.thresholds:
        config.thresholds = list(task.thresholds)  # transformers keeps it, and a materialised checkpoint says it
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_token_id  # a decoder's classifier reads the last token that is not padding
    return config


def load_task_model(
    checkpoint: Checkpoint, task: TaskSpec, *, dtype: str = "float32", device: str = "cpu"
) -> TaskModel:
    """The task's model on the checkpoint's weights, with a new head drawn from torch's random state."""
    from transformers import AutoModel

    pad = load_tokenizer(checkpoint).pad_token_id
    config = task_config(read_config(checkpoint), task, pad)
    if task.head.type == LINEAR or task.kind == EMBEDDING:
        module, missing = load_module(AutoModel, checkpoint, dtype=dtype, device=device, config=config)
        return on_pooled_states(adopt(module, checkpoint, missing), task)
    model, missing = load_module(auto_class(task.kind), checkpoint, dtype=dtype, device=device, config=config)
    if task.kind == TEXT_GENERATION:
        return TaskModel(model, adopt_language_model(model, checkpoint, missing), ())
    prefix = base_prefix(model)
    inside = {name.removeprefix(prefix) for name in missing if name.startswith(prefix)}
    backbone = adopt(getattr(model, prefix[:-1]), checkpoint, inside)
    head = tuple(n for n, _ in model.named_parameters() if n.removeprefix(prefix) not in backbone.arena.slots)
    return TaskModel(model, backbone, head)


def on_pooled_states(backbone: Backbone, task: TaskSpec) -> TaskModel:
    """The task's model on a backbone: its pooled states, or a new linear head on them, drawn at random."""
    return TaskModel(model_on(backbone.module, task).eval(), backbone, () if task.kind == EMBEDDING else (WEIGHT, BIAS))


def model_on(module: nn.Module, task: TaskSpec) -> nn.Module:
    """The whole model of a task on pooled states, around transformers' base model."""
    from sparsehub.package.embedding_model import EmbeddingModel
    from sparsehub.package.linear_model import LinearHeadModel  # imports transformers' models

    return (EmbeddingModel if task.kind == EMBEDDING else LinearHeadModel)(module, task)


def base_prefix(model: nn.Module) -> str:
    """The prefix of the base model's parameter names in a task model, `bert.` for example.

    Raises `BackboneError` where the model keeps its base model under no name that it declares.
    """
    prefix = str(getattr(model, "base_model_prefix", ""))
    if not prefix or not isinstance(getattr(model, prefix, None), nn.Module):
        raise BackboneError(f"{type(model).__name__} keeps its base model under no name that is known")
    return prefix + "."


def save_checkpoint(task_model: TaskModel, checkpoint: Checkpoint, max_length: int, folder: Path) -> None:
    """Write a task model and its tokenizer to `folder` as a plain transformers checkpoint.

    max_length: tokens of one sequence, which the tokenizer is set to.
    """
    tokenizer = load_tokenizer(checkpoint)
    if task_model.backbone.language_model is None:  # a language model may read longer texts than its training rows
        tokenizer.model_max_length = max_length
    model: Any = task_model.model
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
