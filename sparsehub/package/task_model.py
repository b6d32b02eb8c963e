"""transformers' own task models, whole: to train them and to write plain checkpoints."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparsehub.backbone import Backbone, Checkpoint
from sparsehub.backbone.backbone import adopt, adopt_language_model, load_module
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import BackboneError
from sparsehub.package.manifest import (
    MULTIPLE_CHOICE,
    REGRESSION,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    TaskSpec,
)

_AUTO = {
    TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    REGRESSION: "AutoModelForSequenceClassification",
    MULTIPLE_CHOICE: "AutoModelForMultipleChoice",
    TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    TEXT_GENERATION: "AutoModelForCausalLM",
}


@dataclass(frozen=True)
class TaskModel:
    """A whole task model. model: transformers' AutoModelFor...; backbone: its base model, in an arena.

    head: names (in `model`) of every parameter that the backbone's checkpoint lacks.
    """

    model: nn.Module
    backbone: Backbone
    head: tuple[str, ...]


def auto_class(kind: str) -> Any:
    """The transformers Auto class of a task kind."""
    import transformers

    return getattr(transformers, _AUTO[kind])


def task_config(config: Any, task: TaskSpec, pad_token_id: int | None) -> Any:
    """A copy of the backbone's configuration that carries the task's labels and problem type."""
    config = copy.deepcopy(config)
    if task.kind == TEXT_GENERATION:
        return config  # the checkpoint's own: nothing of it depends on the task
    labels = task.labels if task.kind in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION) else ("score",)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    # transformers refuses to load a single label with a problem type, and its multiple choice models never read it
    config.problem_type = None if task.kind == MULTIPLE_CHOICE else task.problem_type
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_token_id  # a decoder's classifier looks for the last token that is no padding
    return config


def load_task_model(
    checkpoint: Checkpoint, task: TaskSpec, *, dtype: str = "float32", device: str = "cpu"
) -> TaskModel:
    """The task's model with a fresh head (drawn from torch's random state) on the checkpoint's weights."""
    from transformers import AutoConfig

    pad = load_tokenizer(checkpoint).pad_token_id
    config = task_config(AutoConfig.from_pretrained(checkpoint.folder), task, pad)
    model, missing = load_module(auto_class(task.kind), checkpoint, dtype=dtype, device=device, config=config)
    if task.kind == TEXT_GENERATION:
        return TaskModel(model, adopt_language_model(model, checkpoint, missing), ())
    prefix = base_prefix(model)
    inside = {name.removeprefix(prefix) for name in missing if name.startswith(prefix)}
    backbone = adopt(getattr(model, prefix[:-1]), checkpoint, inside)
    head = tuple(n for n, _ in model.named_parameters() if n.removeprefix(prefix) not in backbone.arena.slots)
    return TaskModel(model, backbone, head)


def base_prefix(model: nn.Module) -> str:
    """`bert.` and the like: what a base parameter's name begins with inside a task model."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    if not prefix or not isinstance(getattr(model, prefix, None), nn.Module):
        raise BackboneError(f"{type(model).__name__} keeps its base model under no name that is known")
    return prefix + "."


def save_checkpoint(task_model: TaskModel, checkpoint: Checkpoint, max_length: int, folder: Path) -> None:
    """Write a plain transformers checkpoint with its tokenizer."""
    tokenizer = load_tokenizer(checkpoint)
    if task_model.backbone.language_model is None:  # a language model's texts may be longer than its training rows
        tokenizer.model_max_length = max_length
    model: Any = task_model.model
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
