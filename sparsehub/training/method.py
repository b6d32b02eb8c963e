"""The registry of training methods: every selection rule is one, and so is every file of `methods/`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsehub.errors import UsageError
from sparsehub.schema import unknown_name
from sparsehub.selection.registry import rule_names
from sparsehub.settings import Fallback

# Lazily imported: name -> module with `defaults`, `options` and `prepare`.
_METHODS = {
    "head": "sparsehub.training.methods.head_only",
    "full": "sparsehub.training.methods.full",
    "mixout": "sparsehub.training.methods.mixout",
    "child-pruning": "sparsehub.training.methods.child_pruning",
    "diff-pruning": "sparsehub.training.methods.diff_pruning",
    "lt-sft": "sparsehub.training.methods.lt_sft",
    "spiel": "sparsehub.training.methods.spiel",
    "lora": "sparsehub.training.methods.lora",
    "adapter": "sparsehub.training.methods.adapter",
}


_ANY_RULE = "sparsehub.training.methods.selected"


@dataclass(frozen=True)
class ByMethod(Fallback):
    """What a run does where neither the user nor its method says otherwise."""

    note: str = "some methods have another"


@dataclass(frozen=True)
class Method:
    """A way to train, as settings and the command line know it; `job.prepare` runs it."""

    name: str
    defaults: Mapping[str, Any]  # settings of a run for which it wants another standard value
    options: Mapping[str, Any]  # its own settings, with their standard values
    module: str  # whose `prepare` makes a model ready to be trained
    packages: bool = True  # whether what it trains is a change of the backbone's weights


def method_names() -> list[str]:
    return sorted({*rule_names(), *_METHODS})


def method_named(name: str) -> Method:
    """The method called `name`; raises `UsageError`, which names the nearest one."""
    if name not in method_names():
        raise UsageError(unknown_name("method", name, method_names()))
    if name in _METHODS:
        module: Any = importlib.import_module(_METHODS[name])
        return Method(name, module.defaults, module.options, _METHODS[name], getattr(module, "packages", True))
    from sparsehub.selection.rule import rule_named  # imports torch, which the names of the methods do without

    rule = rule_named(name)
    return Method(name, rule.defaults, rule.options, _ANY_RULE)


def options_of(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method; those that were given in the type of their standard value. Raises `UsageError`."""
    options = dict(method.options)
    for name, value in given.items():
        if name not in options:
            raise UsageError(unknown_name(f"option of {method.name}", name, list(method.options)))
        kind = type(options[name])
        try:
            options[name] = value if isinstance(value, kind) else kind(value)
        except (TypeError, ValueError):
            raise UsageError(
                f"the option {name} of {method.name} has the wrong type", found=repr(value)[:80], expected=kind.__name__
            ) from None
    return options
