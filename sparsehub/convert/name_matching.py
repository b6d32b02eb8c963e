"""Which stored tensor is which parameter of a task's model, by names alone, whatever their common prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sparsehub.backbone import Checkpoint
from sparsehub.backbone.backbone import read_config, spellings
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import BackboneError
from sparsehub.package.task_model import auto_class, base_prefix, task_config
from sparsehub.package.task_spec import EMBEDDING, LINEAR, TEXT_GENERATION, TaskSpec

Shape = tuple[int, ...]
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class CheckpointLayout:
    """The names and shapes of a task's model, without its weights."""

    architecture: str  # class name of the base model
    prefix: str  # of the base model's parameters inside the task's model, such as `bert.`; empty where that is all
    base: Mapping[str, Shape]  # the base model's parameters, by name without the prefix, each tied group once
    aliases: Mapping[str, tuple[str, ...]]  # the other names of a tied parameter, by its name in `base`
    others: Mapping[str, Shape]  # the task's own parameters, by their names in the task's model
    linear: frozenset[str]  # names in `base` of the weights of Linear layers
    transposed: frozenset[str]  # and of transformers' Conv1D, which stores them transposed
    around: frozenset[str] = frozenset()
    """Names in `base` that have no prefix: the output layer of a language model, which belongs to its backbone."""


def on_base_model(task: TaskSpec) -> bool:
    """Whether a task's head reads the states of transformers' base model, and is no part of a class of transformers: a
    linear head, or an embedding's, which has no parameters."""
    return task.head.type == LINEAR or task.kind == EMBEDDING


def layout_of(checkpoint: Checkpoint, task: TaskSpec) -> CheckpointLayout:
    """The layout of a task's model on a backbone; no weight is read."""
    from transformers import AutoModel
    from transformers.pytorch_utils import Conv1D

    config = read_config(checkpoint)
    with torch.device("meta"):
        model: Any = (AutoModel if on_base_model(task) else auto_class(task.kind)).from_config(
            task_config(config, task, load_tokenizer(checkpoint).pad_token_id), trust_remote_code=False
        )
    alone = on_base_model(task)
    prefix = "" if alone else base_prefix(model)
    module = model if alone else getattr(model, prefix[:-1])
    groups: dict[int, list[str]] = {}
    shapes: dict[str, Shape] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
        shapes[name] = tuple(parameter.shape)
    generates = task.kind == TEXT_GENERATION
    base = {names[0]: names[1:] for names in groups.values() if generates or names[0].startswith(prefix)}
    around = frozenset(name for name in base if not name.startswith(prefix))
    return CheckpointLayout(
        architecture=type(module).__name__,
        prefix=prefix,
        base={name.removeprefix(prefix): shapes[name] for name in base},
        aliases={n.removeprefix(prefix): tuple(a.removeprefix(prefix) for a in more) for n, more in base.items()},
        others={n: shapes[n] for names in groups.values() for n in names[:1] if n not in base},
        linear=around | {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)},
        transposed=frozenset(f"{n}.weight" for n, m in module.named_modules() if isinstance(m, Conv1D)),
        around=around,
    )


@dataclass(frozen=True)
class Matched:
    """Where the parameters of a layout are stored in a checkpoint."""

    prefix: str  # of the stored names
    names: Mapping[str, str]  # parameter name to stored name, where there is one


def match_layout(layout: CheckpointLayout, stored: Iterable[str], what: str) -> Matched:
    """`match_names` for a layout, with the parameters outside its base model."""
    present = set(stored)
    found = match_names([name for name in layout.base if name not in layout.around], present, what)
    outside = found.prefix.removesuffix(layout.prefix)
    beside = {name: outside + name for name in layout.around if outside + name in present}
    return Matched(found.prefix, {**found.names, **beside})


def match_names(wanted: Collection[str], stored: Iterable[str], what: str) -> Matched:
    """Find the parameters among stored tensors, all of which may have one unknown prefix.

    The prefix under which most parameters are found is taken. Raises `BackboneError` where none is found at all, or
    where two prefixes have as many.
    """
    present = set(stored)
    known = {spelling: name for name in wanted for spelling in spellings(name)}
    votes = Counter(prefix for name in present for prefix, rest in _cuts(name) if rest in known)
    best = votes.most_common(2)
    if not best or (len(best) == 2 and best[0][1] == best[1][1]):
        found = ", ".join(sorted(present)[:SHOWN]) if not best else " and ".join(repr(prefix) for prefix, _ in best)
        raise BackboneError(
            f"the tensors of {what} are not those of this backbone" if not best else f"{what} holds two such models",
            found=found or "no tensors",
            expected=f"names that end like {', '.join(list(wanted)[:SHOWN])}",
        )
    prefix = best[0][0]
    places = {n: next((prefix + s for s in spellings(n) if prefix + s in present), None) for n in wanted}
    return Matched(prefix, {name: place for name, place in places.items() if place is not None})


def _cuts(name: str) -> Iterable[tuple[str, str]]:
    """A dotted name cut in two at each of its dots, and whole: ("", name), ("a.", "b.c"), ("a.b.", "c")."""
    parts = name.split(".")
    for place in range(len(parts)):
        head = ".".join(parts[:place])
        yield head + "." if head else "", ".".join(parts[place:])
