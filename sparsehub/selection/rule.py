"""The protocol of selection rules, and `select`, by which training turns a rule's scores into a mask."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.schema import unknown_name
from sparsehub.selection.registry import GRANULARITIES, RULE_MODULES, rule_names
from sparsehub.selection.rows import top_of_rows
from sparsehub.selection.threshold import top_k

# What a rule can need from calibration: for each candidate parameter a tensor of its shape, summed as said here.
STATISTICS = (
    "gradient",  # the gradient of a batch's mean loss, over batches
    "clipped_gradient",  # the same with dropout on, each batch's gradient (the head's included) cut to a norm of 1
    "row_squares",  # the squared gradient of a row's own loss, over rows
    "batch_squares",  # the squared gradient of a batch's mean loss with dropout on, over batches
    "hessian",  # an estimate of the Hessian's diagonal of a batch's mean loss, over batches
)


@dataclass(frozen=True)
class SelectionRequest:
    """The input of a rule, made by training."""

    parameters: Mapping[str, Tensor]  # the candidates, by name
    budget: int  # entries to choose
    # Which entries compete: all of them (`global`), those of one kind of matrix or one tensor, each of these groups
    # with a share of the budget by its size; or those of one output row (`row`).
    granularity: str = "global"
    output_axes: Mapping[str, int] = field(default_factory=dict)  # of weights of linear layers: which way they lie
    seed: int = 0  # of random rules
    statistics: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # by `STATISTICS`, then by parameter
    options: Mapping[str, Any] = field(default_factory=dict)  # the rule's own settings


ScoreOf = Callable[[str], Tensor]


class Rule(Protocol):
    """A selection rule: a module of this package with these names.

    `scores` returns a function: parameter name -> flat float32 scores, none negative. It is called several times for a
    name and must give the same scores each time, since scores are never kept. An entry of score zero is chosen only
    when nothing better is left; a rule that names its entries outright gives every other entry the score -1, which is
    never chosen.
    """

    needs: tuple[str, ...]  # the `STATISTICS` that it reads
    defaults: Mapping[str, Any]  # training settings that differ under this rule
    options: Mapping[str, Any]  # its own settings, with their defaults

    def scores(self, request: SelectionRequest) -> ScoreOf: ...


def rule_named(name: str) -> Rule:
    """The rule called `name`; raises `UsageError`, which names the nearest one."""
    if name not in RULE_MODULES:
        raise UsageError(unknown_name("selection method", name, rule_names()))
    return cast(Rule, importlib.import_module(RULE_MODULES[name]))


def budget_of(parameters: Mapping[str, Tensor], density: float) -> int:
    """Entries that `density` (a share of all candidates, 0 to 1) allows; raises `UsageError`."""
    if not 0 <= density <= 1 or math.isnan(density):
        raise UsageError("density is a share of the backbone's entries", found=density, expected="0 to 1, e.g. 0.005")
    return round(density * sum(parameter.numel() for parameter in parameters.values()))


def select(method: str, request: SelectionRequest) -> dict[str, Tensor]:
    """The chosen entries: by parameter name, flat int64 positions, sorted; parameters without any are left out.

    Raises `UsageError` where a statistic is missing that the rule needs.
    """
    if request.granularity not in GRANULARITIES:
        raise UsageError(unknown_name("granularity", request.granularity, list(GRANULARITIES)))
    rule = rule_named(method)
    for missing in (need for need in rule.needs if need not in request.statistics):
        raise UsageError(f"{method} needs the statistic {missing!r}", fix="give calibration batches of labelled rows")
    score_of = rule.scores(request)
    if request.granularity == "row":
        axes = request.output_axes
        weights = {name: (weight, axes[name]) for name, weight in request.parameters.items() if name in axes}
        return top_of_rows(weights, score_of, request.budget)
    chosen: dict[str, Tensor] = {}
    for names, share in _shares(request, score_of):
        chosen.update(top_k(names, score_of, share))
    return {name: chosen[name] for name in request.parameters if name in chosen}


def kind_of(name: str) -> str:
    """A parameter's name without the number of its layer: what stands at the same place in every layer."""
    return re.sub(r"\.\d+(?=\.)", "", name)


def _shares(request: SelectionRequest, score_of: ScoreOf) -> list[tuple[list[str], int]]:
    """Groups that compete, and the budget of each by its size: the entries of the parameters in which the rule may
    choose at all. The largest remainders get what rounding left over."""
    if request.granularity == "global":
        return [(list(request.parameters), request.budget)]
    groups: dict[str, list[str]] = {}
    for name in request.parameters:
        if bool((score_of(name) != -1).any()):
            groups.setdefault(kind_of(name) if request.granularity == "kind" else name, []).append(name)
    sizes = {group: sum(request.parameters[name].numel() for name in names) for group, names in groups.items()}
    total = sum(sizes.values())
    exact = {group: request.budget * size / total for group, size in sizes.items()}
    shares = {group: math.floor(share) for group, share in exact.items()}
    by_remainder = sorted(exact, key=lambda group: exact[group] - shares[group], reverse=True)
    for group in by_remainder[: request.budget - sum(shares.values())]:
        shares[group] += 1
    return [(names, shares[group]) for group, names in groups.items()]
