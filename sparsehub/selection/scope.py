"""Which parameters a method may change: `--layers`, and `--include` and `--exclude`, patterns over their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from sparsehub.backbone.layers import LayerList
from sparsehub.errors import UsageError
from sparsehub.selection.depth import Depth


def in_scope(parameters: Mapping[str, Tensor], include: Sequence[str], exclude: Sequence[str]) -> dict[str, Tensor]:
    """The parameters that match a pattern of `include` (all, where there is none) and none of `exclude`.

    Raises `UsageError` for a pattern that matches nothing, which is a misspelling, and where nothing is left.
    """
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise UsageError(
                f"the pattern {pattern!r} matches no parameter of this backbone",
                expected=f"names like {', '.join(list(parameters)[:3])}",
            )
    left = {
        name: tensor
        for name, tensor in parameters.items()
        if (not include or _matches(name, include)) and not _matches(name, exclude)
    }
    if not left:
        raise UsageError("no parameter is left in scope", found=f"include {include}, exclude {exclude}")
    return left


def in_depth(parameters: Mapping[str, Tensor], depth: Depth, layers: LayerList) -> dict[str, Tensor]:
    """The parameters that stand in the part of a backbone's depth which `--layers` names.

    Raises `UsageError` where it has fewer layers than that, and where nothing is left.
    """
    places = depth.within(layers.count)
    left = {name: tensor for name, tensor in parameters.items() if layers.place(name) in places}
    if not left:
        raise UsageError("no parameter is left in scope", found=f"layers {depth.text} of {layers.count}")
    return left


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
