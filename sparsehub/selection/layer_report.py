"""How many entries a selection chose in each layer, for the reports of training and conversion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerSelection:
    """One part of the backbone in the report of what a rule chose, which `sparsehub train` prints."""

    part: str  # the layer, such as `encoder.layer.3`
    entries: int  # that it has
    chosen: int  # of them

    @property
    def density(self) -> float:
        return self.chosen / self.entries


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: `encoder.layer.3`, or its first name where it is in none."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: place + 1])


def by_layer(mask: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> list[LayerSelection]:
    """A line for each layer, in the backbone's order. mask: chosen positions by name; shapes: of all candidates."""
    entries: dict[str, int] = {}
    chosen: dict[str, int] = {}
    for name, shape in shapes.items():
        layer = layer_of(name)
        entries[layer] = entries.get(layer, 0) + math.prod(shape)
        chosen[layer] = chosen.get(layer, 0) + (len(mask[name]) if name in mask else 0)
    return [LayerSelection(layer, entries[layer], chosen[layer]) for layer in entries]
