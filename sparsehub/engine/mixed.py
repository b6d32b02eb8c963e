"""Run a batch of several tasks on the untouched arena: each row adds its own task's sparse part, module by module.

For the time of one forward pass the touched sites have a forward of their own; before and after it nothing is on the
model, so compiled forwards and captured graphs of the plain backbone stay what they were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparsehub import kernels
from sparsehub.engine.side import Side
from sparsehub.engine.sites import CONV1D, EMBEDDING, LAYER_NORM, LINEAR, RMS_NORM, Site, Sites, with_weight

Bounds = Sequence[tuple[int, int, int]]


class MixedBatch:
    """Whose rows are whose, and what each task changes, for one forward pass.

    sides: by slot, None for a task (or the plain backbone) that changes nothing, but not all None; bounds: (slot, first
    row, row after the last), in order, without gaps; packed: the rows are tokens of one long sequence [1, rows, width],
    not sequences; outputs: whose are the rows that go on to the output layer, where those are fewer.
    """

    def __init__(
        self,
        sites: Sites,
        sides: Sequence[Side | None],
        bounds: Bounds,
        *,
        packed: bool = False,
        outputs: Bounds | None = None,
    ):
        self.sites, self.sides, self.packed = sites, sides, packed
        self.rows = bounds[-1][2]
        self._bounds = bounds
        self._segments: dict[int, kernels.Segments] = {}
        self._touched: set[int] = set()
        self.done: dict[int, tuple[Tensor, Tensor]] = {}  # by site: an input, and what the site makes of it
        if outputs and outputs[-1][2] < self.rows:
            self._segments[outputs[-1][2]] = kernels.segments_of(outputs)
        self._tables = _tables(sites, sides)
        self._address, self._stride = self._tables.data_ptr(), self._tables[0].nbytes if len(sites.sites) else 0

    def segments(self, tokens: int) -> kernels.Segments:
        """Of an input with so many tokens in all."""
        known = self._segments.get(tokens)
        if known is None:
            a_row, rest = divmod(tokens, self.rows)
            assert rest == 0, (tokens, self.rows)
            known = self._segments[tokens] = kernels.segments_of(self._bounds, a_row)
        return known

    def changes(self, site: Site) -> kernels.Changes[Any]:
        address = self._address + site.index * self._stride
        return kernels.Changes(_Parts(self.sides, site), self._tables, site.index, address)

    def called_with(self, site: Site) -> list[Site]:
        """The touched sites that are called after this one with its input."""
        return [self.sites.sites[index] for index in self.sites.shared.get(site.index, ()) if index in self._touched]

    @contextmanager
    def on_model(self) -> Iterator[None]:
        """Inside, the backbone's forward is this batch's."""
        self._touched = set().union(*(side.parts for side in self.sides if side is not None))
        modules = {index: self.sites.sites[index].module for index in self._touched}
        try:
            for index, module in modules.items():
                site = self.sites.sites[index]
                # Past nn.Module's own attribute setting, which would look for parameters and hooks first.
                module.__dict__["forward"] = functools.partial(_FORWARDS[site.kind], self, site)
            yield
        finally:
            for module in modules.values():
                module.__dict__.pop("forward", None)
            self.done.clear()


def _tables(sites: Sites, sides: Sequence[Side | None]) -> Tensor:
    """[sites, slots, ADDRESSES]: the addresses of what every site has for every slot."""
    device = next(side.addresses.device for side in sides if side is not None)
    base = sites.base_addresses(device) if None in sides else None
    return torch.stack([base if side is None else side.addresses for side in sides], dim=1)  # type: ignore[misc]


class _Parts(Sequence[Any]):
    """What one site has for every slot; looked up only where a kernel asks, which the native ones do not."""

    __slots__ = ("sides", "site")

    def __init__(self, sides: Sequence[Side | None], site: Site):
        self.sides, self.site = sides, site

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, slot: Any) -> Any:
        side = self.sides[slot]
        return self.site.base if side is None else side.parts.get(self.site.index, self.site.base)


def _linear(batch: MixedBatch, site: Site, x: Tensor) -> Tensor:
    """Of a module, and of those that will be called with the same input: they find theirs done."""
    given, y = batch.done.pop(site.index, (None, None))
    if y is not None and given is x:
        return y
    sites = [site, *batch.called_with(site)]
    maps = [kernels.Map(*s.matrix, batch.changes(s)) for s in sites]
    first, *others = kernels.linear(x.contiguous(), maps, batch.segments(_tokens(x)))
    for other, its in zip(sites[1:], others, strict=True):
        batch.done[other.index] = (x, its)
    return first


def _embedding(batch: MixedBatch, site: Site, ids: Tensor) -> Tensor:
    """Rows that were looked up; ids that all rows share are looked up for each, since their changes differ."""
    if not batch.packed and len(ids) == 1:
        ids = ids.expand(batch.rows, *ids.shape[1:])
    y: Tensor = type(site.module).forward(site.module, ids).contiguous()
    flat = ids.reshape(-1).long().contiguous()  # packed ones are of 32 bits
    kernels.sparse_lookup_(y.view(-1, y.shape[-1]), flat, batch.segments(flat.shape[0]), batch.changes(site))
    return y


def _layer_norm(batch: MixedBatch, site: Site, x: Tensor) -> Tensor:
    """Normalise all rows, each with its own task's scale and shift."""
    module: Any = site.module
    return kernels.layer_norm(x.contiguous(), batch.segments(_tokens(x)), batch.changes(site), module.eps)


def _rms_norm(batch: MixedBatch, site: Site, x: Tensor) -> Tensor:
    """Normalise all rows, each with its own task's scale. Where the module is no plain RMSNorm, by its own code."""
    if site.epsilon is not None:
        return kernels.rms_norm(x.contiguous(), batch.segments(_tokens(x)), batch.changes(site), site.epsilon)
    assert site.neutral is not None  # every RMSNorm site has one
    with with_weight(site.module, site.neutral):
        y: Tensor = type(site.module).forward(site.module, x).contiguous()
    flat = y.view(-1, y.shape[-1])
    kernels.scale_shift_(flat, batch.segments(flat.shape[0]), batch.changes(site))
    return y


def _tokens(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


_FORWARDS: dict[str, Callable[[MixedBatch, Site, Tensor], Tensor]] = {
    LINEAR: _linear,
    CONV1D: _linear,
    EMBEDDING: _embedding,
    LAYER_NORM: _layer_norm,
    RMS_NORM: _rms_norm,
}
