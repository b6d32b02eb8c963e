"""transformers' own task models over a shared backbone: whole ones to train, head-only ones to serve."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone import Backbone, Checkpoint
from sparsehub.backbone.backbone import adopt, adopt_language_model, load_module
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import BackboneError, FormatError
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


class _StandIn(nn.Module):
    """Takes the base model's place and returns outputs that were computed before."""

    pooler: nn.Module | None

    def __init__(self, pooler: nn.Module | None):
        super().__init__()
        self.pooler = pooler
        self.outputs: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        if self.pooler is None:
            return self.outputs
        outputs = copy.copy(self.outputs)
        outputs.pooler_output = self.pooler(outputs.last_hidden_state)
        return outputs


# By backbone: models of each shape of task that was loaded on it.
_TEMPLATES: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Any]] = weakref.WeakKeyDictionary()


class HeadModel:
    """A task's model without its backbone: it runs on outputs that the shared backbone has computed."""

    def __init__(self, model: nn.Module, stand_in: _StandIn):
        self._model, self._stand_in = model, stand_in

    def __call__(self, inputs: Mapping[str, Tensor], outputs: Any) -> Tensor:
        """Logits of the rows. inputs: the batch as the backbone saw it; outputs: what the backbone returned."""
        self._stand_in.outputs = outputs
        try:
            return self._model(**inputs).logits
        finally:
            self._stand_in.outputs = None

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self._model.parameters())


def build_head(backbone: Backbone, task: TaskSpec, tensors: Mapping[str, Tensor], pad_token_id: int) -> HeadModel:
    """transformers' head code around a stand-in for the backbone; raises `FormatError` where `tensors` do not fit."""
    model = _whole_model(backbone, task, pad_token_id)
    prefix = base_prefix(model)
    stand_in = _StandIn(_own_pooler(getattr(model, prefix[:-1]), prefix, tensors))
    setattr(model, prefix[:-1], stand_in)
    head = {name: tensor.to(backbone.device, backbone.dtype, copy=True) for name, tensor in tensors.items()}
    try:
        model.load_state_dict(head, strict=True, assign=True)
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise FormatError("the head does not fit the task's model", found=problem[:500]) from error
    return HeadModel(model.eval(), stand_in)


def _whole_model(backbone: Backbone, task: TaskSpec, pad_token_id: int) -> nn.Module:
    """A task's model without memory behind its parameters, free to be changed.

    transformers takes longer to build one than the rest of a task's load takes together, so one of each shape is kept
    with its backbone; the copy shares what of it the head does not need: the base model, but not its pooler.
    """
    kept = _TEMPLATES.setdefault(backbone.module, {})
    shape = (task.kind, task.num_outputs, task.problem_type, pad_token_id)
    if shape not in kept:
        with torch.device("meta"):
            kept[shape] = auto_class(task.kind).from_config(task_config(backbone.config, task, pad_token_id))
    template = kept[shape]
    base = getattr(template, base_prefix(template)[:-1])
    shared = {id(module): module for name, module in base.named_children() if name != "pooler"}
    return copy.deepcopy(template, dict(shared))


def _own_pooler(base: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    inside = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if any(not name.startswith("pooler.") for name in inside):
        raise FormatError("the head holds parameters from inside the backbone", found=", ".join(sorted(inside))[:300])
    pooler = getattr(base, "pooler", None)
    return pooler if inside and isinstance(pooler, nn.Module) else None


def save_checkpoint(task_model: TaskModel, checkpoint: Checkpoint, max_length: int, folder: Path) -> None:
    """Write a plain transformers checkpoint with its tokenizer."""
    tokenizer = load_tokenizer(checkpoint)
    if task_model.backbone.language_model is None:  # a language model's texts may be longer than its training rows
        tokenizer.model_max_length = max_length
    model: Any = task_model.model
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
