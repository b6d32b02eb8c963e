"""What a selection rule is, the registry of rules, and how scores become a mask."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.schema import unknown_name
from sparsehub.selection.threshold import top_k

# Lazily imported: name -> module with `needs_gradients` and `scores`.
_RULES = {
    "sam": "sparsehub.selection.sam",
    "random": "sparsehub.selection.random",
    "magnitude": "sparsehub.selection.magnitude",
    "bitfit": "sparsehub.selection.bitfit",
}
GRANULARITIES = ("global", "tensor")


@dataclass(frozen=True)
class SelectionRequest:
    """What a rule may look at.

    parameters: the candidates, by name; budget: how many entries to choose; gradients: of the mean loss over the
    calibration batches, by name, for the rules that need them; seed: for the rules that draw.
    """

    parameters: Mapping[str, Tensor]
    budget: int
    granularity: str = "global"
    seed: int = 0
    gradients: Mapping[str, Tensor] | None = None


ScoreOf = Callable[[str], Tensor]


class Rule(Protocol):
    """A module of this package. `scores` returns a function: parameter name -> flat float32 scores, none negative.

    The function is called several times for a name and must give the same scores each time: scores are never kept.
    An entry of score zero is chosen only when nothing better is left; a rule that names its entries outright gives
    every other entry the score -1, which is never chosen.
    """

    needs_gradients: bool

    def scores(self, request: SelectionRequest) -> ScoreOf: ...


def rule_names() -> list[str]:
    return sorted(_RULES)


def rule_named(name: str) -> Rule:
    """The rule called `name`; raises `UsageError`, which names the nearest one."""
    if name not in _RULES:
        raise UsageError(unknown_name("selection method", name, rule_names()))
    return cast(Rule, importlib.import_module(_RULES[name]))


def budget_of(parameters: Mapping[str, Tensor], density: float) -> int:
    """Entries that `density` (a share of all candidates, 0 to 1) allows; raises `UsageError`."""
    if not 0 <= density <= 1 or math.isnan(density):
        raise UsageError("density is a share of the backbone's entries", found=density, expected="0 to 1, e.g. 0.005")
    return round(density * sum(parameter.numel() for parameter in parameters.values()))


def select(method: str, request: SelectionRequest) -> dict[str, Tensor]:
    """The chosen entries: by parameter name, flat int64 positions, sorted; parameters without any are left out."""
    if request.granularity not in GRANULARITIES:
        raise UsageError(unknown_name("granularity", request.granularity, list(GRANULARITIES)))
    score_of = rule_named(method).scores(request)
    names = list(request.parameters)
    if request.granularity == "global":
        return top_k(names, score_of, request.budget)
    chosen: dict[str, Tensor] = {}
    for name, share in _shares(request).items():
        chosen.update(top_k([name], score_of, share))
    return chosen


def _shares(request: SelectionRequest) -> dict[str, int]:
    """The budget split over the parameters by their size; the largest remainders get what rounding left over."""
    total = sum(parameter.numel() for parameter in request.parameters.values())
    exact = {name: request.budget * parameter.numel() / total for name, parameter in request.parameters.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: exact[name] - shares[name], reverse=True)
    for name in by_remainder[: request.budget - sum(shares.values())]:
        shares[name] += 1
    return shares
