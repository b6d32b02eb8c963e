"""The names of a heat map's rows and columns on a terminal: whole where there is room, else short ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from sparsehub.package.delta_stats import HeatMap

_CELL = 7  # columns of a share on its shade
_HEADING = "layer"


@dataclass(frozen=True)
class HeatMapNames:
    """What a heat map calls its layers and kinds; a kind for which there is no room is absent."""

    layers: Mapping[str, str]
    kinds: Mapping[str, tuple[str, ...]]  # the lines of each heading

    @property
    def width(self) -> int:
        """Columns of the whole table; one lies between two of its columns."""
        first = max(map(cell_len, (_HEADING, *self.layers.values())))
        return first + sum(1 + max(_CELL, *map(cell_len, lines)) for lines in self.kinds.values())


def heat_map_names(found: HeatMap, room: int) -> HeatMapNames:
    """The longest names with which the table has at most `room` columns; kinds of the fewest entries go last of all."""
    whole = HeatMapNames({layer: layer for layer in found.layers}, {kind: (kind,) for kind in found.kinds})
    if whole.width <= room:
        return whole
    short = HeatMapNames(_short_layers(found.layers), {kind: _heading(kind, found.kinds) for kind in found.kinds})
    fewest = sorted(found.kinds, key=lambda kind: sum(c.nnz for (_, its), c in found.cells.items() if its == kind))
    for gone in range(len(fewest)):
        kinds = {kind: lines for kind, lines in short.kinds.items() if kind not in fewest[:gone]}
        if (fitting := HeatMapNames(short.layers, kinds)).width <= room:
            return fitting
    return HeatMapNames(short.layers, {})


def _short_layers(layers: Sequence[str]) -> dict[str, str]:
    """L0, L1 ... in a model with one stack of layers; with the stack's name where there are more."""
    stacks = {layer.rpartition(" ")[0] for layer in layers}
    return {layer: f"L{layer.rpartition(' ')[2]}" if len(stacks) == 1 else layer for layer in layers}


def _heading(kind: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """The end of a dotted name that no other kind has, a line for each part."""
    parts = kind.split(".")
    for count in range(1, len(parts)):
        end = parts[-count:]
        if all(other == kind or other.split(".")[-count:] != end for other in kinds):
            return tuple(end)
    return tuple(parts)
