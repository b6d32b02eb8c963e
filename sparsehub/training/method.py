"""The registry of training methods: every selection rule is one, and so is every file of `methods/`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsehub.errors import UsageError
from sparsehub.schema import unknown_name
from sparsehub.selection.registry import rule_names

if TYPE_CHECKING:
    from sparsehub.training.job import Job, Prepared

# Lazily imported: name -> module with `defaults`, `options` and `prepare`.
_METHODS = {
    "full": "sparsehub.training.methods.full",
    "mixout": "sparsehub.training.methods.mixout",
    "child-pruning": "sparsehub.training.methods.child_pruning",
    "diff-pruning": "sparsehub.training.methods.diff_pruning",
    "lt-sft": "sparsehub.training.methods.lt_sft",
    "lora": "sparsehub.training.methods.lora",
    "adapter": "sparsehub.training.methods.adapter",
}


@dataclass(frozen=True)
class Method:
    """A way to train.

    defaults: settings of a run that it wants to be others; options: its own, with their values; packages: whether what
    it trains is a change of the backbone's weights.
    """

    name: str
    defaults: Mapping[str, Any]
    options: Mapping[str, Any]
    prepare: Callable[[Job], Prepared]
    packages: bool = True


def method_names() -> list[str]:
    return sorted({*rule_names(), *_METHODS})


def method_named(name: str) -> Method:
    """The method called `name`; raises `UsageError`, which names the nearest one."""
    if name not in method_names():
        raise UsageError(unknown_name("method", name, method_names()))
    if name in _METHODS:
        module: Any = importlib.import_module(_METHODS[name])
        return Method(name, module.defaults, module.options, module.prepare, getattr(module, "packages", True))
    from sparsehub.selection.rule import rule_named  # imports torch, which the names of the methods do without

    rule, selected = rule_named(name), importlib.import_module("sparsehub.training.methods.selected")
    return Method(name, rule.defaults, rule.options, selected.prepare)
