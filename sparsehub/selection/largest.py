"""Cut a dense change of many tensors to its largest entries, for `extract` and for methods that train every weight.

Tensors are taken one by one, and in pieces, so that the whole change is never in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.delta import Delta, ParameterDelta
from sparsehub.progress import work
from sparsehub.selection.threshold import top_k

# A parameter's dense change, whole or in pieces one after another; asked for several times, never kept.
ChangeOf = Callable[[str], Tensor | Iterable[Tensor]]


@dataclass(frozen=True)
class Cut:
    """What a budget keeps of a change."""

    delta: Delta
    norms: Mapping[str, tuple[float, float]]  # by parameter: the squared norm that is kept, and that of the whole

    @property
    def kept(self) -> float:
        """Share of the change's squared norm that the delta holds; 1 where there is no change."""
        kept, whole = (sum(column) for column in zip(*self.norms.values(), strict=True)) if self.norms else (0.0, 0.0)
        return kept / whole if whole else 1.0


def largest(names: Iterable[str], change_of: ChangeOf, budget: int) -> dict[str, Tensor]:
    """Flat positions, by name, of the `budget` largest absolute changes; ties go to the earlier entry."""
    return top_k(list(names), lambda name: (piece.float().abs() for piece in _pieces(change_of, name)), budget)


def cut(shapes: Mapping[str, tuple[int, ...]], change_of: ChangeOf, budget: int, value_dtype: str) -> Cut:
    """The `budget` largest changes as an `add` delta. shapes: of the parameters, by name.

    Entries that are zero once stored are left out.
    """
    chosen = largest(shapes, change_of, budget)
    parts, norms = {}, {}
    with work("collecting what was chosen", len(shapes), "tensors") as advance:
        for name, shape in shapes.items():
            part, norms[name] = _part(shape, _pieces(change_of, name), chosen.get(name), value_dtype)
            if len(part.indices):
                parts[name] = part
            advance(1)
    return Cut(Delta(parts, "add", value_dtype), norms)


def _part(
    shape: tuple[int, ...], pieces: Iterator[Tensor], chosen: Tensor | None, value_dtype: str
) -> tuple[ParameterDelta, tuple[float, float]]:
    wanted = torch.empty(0, dtype=torch.int64) if chosen is None else chosen
    places, values, whole, start = [wanted[:0]], [torch.empty(0)], 0.0, 0
    for piece in pieces:
        whole += float(piece.double().square().sum())
        first, last = torch.searchsorted(wanted, torch.tensor([start, start + len(piece)])).tolist()
        found = piece[wanted[first:last] - start]
        stays = survives(found, value_dtype)
        places.append(wanted[first:last][stays])
        values.append(found[stays])
        start += len(piece)
    part = ParameterDelta(shape, torch.cat(places), torch.cat(values))
    return part, (float(part.values.double().square().sum()), whole)


def _pieces(change_of: ChangeOf, name: str) -> Iterator[Tensor]:
    found = change_of(name)
    if isinstance(found, Tensor):
        found = found.detach().flatten().cpu().split(1 << 20)
    yield from found


def survives(values: Tensor, value_dtype: str) -> Tensor:
    """Entries that are not zero once stored; int8 shares a scale among neighbours and keeps what float32 keeps."""
    stored = values if value_dtype == "int8" else values.to(getattr(torch, value_dtype))
    return stored != 0
