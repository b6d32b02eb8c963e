"""Mixed batches: rows of several tasks in one pass on the base weights; each row adds its own task's sparse part.

For the time of one pass the target modules that a task changes have a forward of their own, one function per kind at
the end of this file. Before and after it nothing is on the model, so compiled forwards and captured graphs of the plain
backbone stay what they were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub import kernels
from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.address_tables import PartsBySlot, address_tables
from sparsehub.engine.checksum import checksum
from sparsehub.engine.int8_matrix import Int8Matrix, QuantisedInput
from sparsehub.engine.module_forwards import with_forwards
from sparsehub.engine.target_modules import (
    CONV1D,
    EMBEDDING,
    LAYER_NORM,
    LINEAR,
    RMS_NORM,
    TargetModule,
    TargetModules,
    with_weight,
)
from sparsehub.errors import EngineError
from sparsehub.kernels.gelu import gelu

Bounds = Sequence[tuple[int, int, int]]


class RowGroups:
    """Which rows of a pass are which task's, as kernels are told it; `MixedBatch` has those of the rows that run now.

    bounds: (slot, first row, row after the last), in order, without gaps.
    """

    def __init__(self, bounds: Bounds):
        self.bounds, self.rows = bounds, bounds[-1][2]
        self._segments: dict[int, kernels.Segments] = {}

    def segments(self, tokens: int) -> kernels.Segments:
        """Which rows of an input are which task's; by the input's tokens in all."""
        known = self._segments.get(tokens)
        if known is None:
            a_row, rest = divmod(tokens, self.rows)
            assert rest == 0, (tokens, self.rows)
            known = self._segments[tokens] = kernels.segments_of(self.bounds, a_row)
        return known


class MixedBatch:
    """One mixed pass: which rows are which task's, and what each task changes. `BatchRunner` makes one per batch,
    generation's `Packer` one per kind of step.

    adapters: by slot, None for what changes nothing, but not all None, unless the base is quantised; bounds: (slot,
    first row, row after the last), in order, without gaps, or groups made of them; packed: the rows are the tokens of
    one long sequence [1, rows, width]; outputs: as `bounds`, of the rows that reach the output layer, where fewer do;
    readers: further targets with a forward here, which may read what rows share; tables: the adapters' address tables.
    """

    def __init__(
        self,
        targets: TargetModules,
        adapters: Sequence[AdapterWeights | None],
        bounds: Bounds | RowGroups,
        *,
        packed: bool = False,
        outputs: Bounds | None = None,
        readers: Collection[int] = (),
        tables: Tensor | None = None,
    ):
        self.targets, self.adapters, self.packed = targets, adapters, packed
        self._groups = bounds if isinstance(bounds, RowGroups) else RowGroups(bounds)
        self._outputs = RowGroups(outputs) if outputs else self._groups
        self._touched: set[int] = set()
        self._readers = readers
        # by id: an input, the rows that it was made of, and for each of its rows the one that it equals
        self._shared: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        # by target: what inputs are made of, and what the target gives for that by base weights
        self._once: dict[int, tuple[Tensor, Tensor]] = {}
        self.done: dict[int, tuple[Tensor, Tensor]] = {}  # by target: an input, and its output, computed in advance
        self._quantised: QuantisedInput | None = None  # the last one
        self._tables = address_tables(targets, adapters) if tables is None else tables
        self._digest = checksum([self._tables])
        self._address, self._stride = self._tables.data_ptr(), self._tables[0].nbytes if len(targets.targets) else 0

    @property
    def rows(self) -> int:
        """Of the pass, as it runs now."""
        return self._groups.rows

    def regroup(self, groups: RowGroups) -> None:
        """From here on in the pass there are other rows; `TrunkPass` says so."""
        self._groups = self._outputs = groups
        self.done.clear()

    def share(self, grown: Tensor, source: Tensor, rows: Tensor) -> None:
        """Note that an input is made of other rows, of which the base products are computed once: grown[i] =
        source[rows[i]]."""
        self._shared[id(grown)] = grown, source, rows

    def end_sharing(self) -> None:
        """Forget what `share` noted: its inputs are read no more."""
        self._shared.clear()
        self._once.clear()

    def of_shared(self, target: TargetModule, source: Tensor) -> Tensor:
        """What a target gives by base weights for the rows that inputs are made of, however many inputs those are."""
        known, y = self._once.get(target.index, (None, None))
        if y is None or known is not source:
            y = type(target.module).forward(target.module, source)
            self._once[target.index] = source, y
        return y

    def shared(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """What an input is made of, and by which rows; None where it is made of nothing else."""
        found = self._shared.get(id(x))
        return None if found is None else found[1:]

    def quantised(self, target: TargetModule, x: Tensor) -> QuantisedInput:
        """An input as int8 maps take it; made once for maps that were seen to share it."""
        if self._quantised is None or self._quantised.given is not x or target.index not in self.targets.sharing:
            self._quantised = QuantisedInput(x)
        return self._quantised

    def touches(self, target: TargetModule) -> bool:
        """Whether any task of the batch changes a target."""
        return target.index in self._touched

    def segments(self, tokens: int) -> kernels.Segments:
        """Which rows of an input are which task's; by the input's tokens in all."""
        return (self._outputs if tokens == self._outputs.rows else self._groups).segments(tokens)

    def changes(self, target: TargetModule) -> kernels.Changes[Any]:
        """What every task changes in a target, for a kernel."""
        address = self._address + target.index * self._stride
        return kernels.Changes(PartsBySlot(self.adapters, target), self._tables, target.index, address)

    def called_with(self, target: TargetModule) -> list[TargetModule]:
        """The changed targets that are called after this one with the same input."""
        return [
            self.targets.targets[index] for index in self.targets.after.get(target.index, ()) if index in self._touched
        ]

    def tables(self) -> Tensor:
        """The address tables, proved: text generation keeps them for many steps. Raises `EngineError` where they are
        damaged."""
        if checksum([self._tables]) != self._digest:
            raise EngineError("a mixed batch's address tables in memory are damaged", fix="send the request again")
        return self._tables

    @contextmanager
    def on_model(self) -> Iterator[None]:
        """Inside, the backbone's changed targets have this batch's forward. Raises what `tables` raises."""
        self.tables()
        self._touched = set().union(*(adapter.parts for adapter in self.adapters if adapter is not None))
        own = {*self._touched, *self._readers}
        if self.targets.quantised is not None:
            own |= self.targets.quantised.matrices.keys()
        targets = [self.targets.targets[index] for index in own]
        forwards: dict[nn.Module, Any] = {t.module: functools.partial(_FORWARDS[t.kind], self, t) for t in targets}
        if self.targets.int8 is not None:
            forwards |= dict.fromkeys(self.targets.int8.gelus, gelu)
        try:
            with with_forwards(forwards):
                yield
        finally:
            self.done.clear()
            self.end_sharing()
            self._quantised = None


def _linear(batch: MixedBatch, target: TargetModule, x: Tensor) -> Tensor:
    """Linear and Conv1D: the outputs of the target and of those that will be called with the same input, all at once;
    the latter are kept in `done` for their own calls."""
    given, y = batch.done.pop(target.index, (None, None))
    if y is not None and given is x:
        return y
    targets = [target, *batch.called_with(target)]
    matrices = batch.targets.int8.matrices if batch.targets.int8 is not None else {}
    own = [matrices[each.index] for each in targets if each.index in matrices]
    ys = _int8_outputs(batch, targets, own, x) if len(own) == len(targets) else _outputs_of(batch, targets, x)
    for other, its in zip(targets[1:], ys[1:], strict=True):
        batch.done[other.index] = (x, its)
    return ys[0]


def _outputs_of(batch: MixedBatch, targets: Sequence[TargetModule], x: Tensor) -> list[Tensor]:
    """The outputs of linear targets that read one input. Where it is made of other rows, their base products are
    handed out, and only each task's own part is computed for all rows."""
    if batch.targets.packed is not None:
        return [_packed_output(batch, target, x) for target in targets]
    if (made := batch.shared(x)) is not None:
        return _outputs_of_shared(batch, targets, x, *made)
    maps = [kernels.Map(*target.matrix, batch.changes(target)) for target in targets]
    return kernels.linear(x.contiguous(), maps, batch.segments(_tokens(x)))


def _outputs_of_shared(
    batch: MixedBatch, targets: Sequence[TargetModule], x: Tensor, source: Tensor, rows: Tensor
) -> list[Tensor]:
    """The same for an input whose row i is `source`'s row rows[i]."""
    products = [batch.of_shared(target, source) for target in targets]
    if not any(map(batch.touches, targets)):
        return [product.index_select(0, rows) for product in products]
    once, *flat = (tensor.contiguous().view(-1, tensor.shape[-1]) for tensor in (source, *products))
    length = len(once) // len(source)
    tokens = (rows[:, None] * length + torch.arange(length, device=rows.device)).flatten()
    changes = [batch.changes(target) for target in targets]
    ys = kernels.shared_linear(once, tokens, flat, changes, batch.segments(len(tokens)))
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in ys]


def _int8_outputs(
    batch: MixedBatch, targets: Sequence[TargetModule], matrices: Sequence[Int8Matrix], x: Tensor
) -> list[Tensor]:
    """The same on an int8 base: the products in 8 bits, and what the tasks change in float32."""
    given = batch.quantised(targets[0], x)
    if not any(map(batch.touches, targets)):
        return [matrix.product(given) for matrix in matrices]
    maps = [matrix.with_changes(batch.changes(each)) for matrix, each in zip(matrices, targets, strict=True)]
    return kernels.int8_linear(given.whole, given.rows, maps, batch.segments(_tokens(x)))


def _packed_output(batch: MixedBatch, target: TargetModule, x: Tensor) -> Tensor:
    """The output of one target on a packed base: the product by a library, and what the tasks change in float."""
    assert batch.targets.packed is not None
    matrix, segments = batch.targets.packed.matrices.get(target.index), batch.segments(_tokens(x))
    if matrix is None:
        return kernels.linear(x.contiguous(), [kernels.Map(*target.matrix, batch.changes(target))], segments)[0]
    y = matrix(x)
    if batch.touches(target):
        kernels.sparse_linear_(y, x.contiguous(), segments, batch.changes(target))
    return y


def _norm_of_shared(batch: MixedBatch, target: TargetModule, x: Tensor) -> Tensor | None:
    """The norm of the rows that the input is made of, handed out; None where tasks have norms of their own."""
    made = batch.shared(x)
    if made is None or batch.touches(target):
        return None
    source, rows = made
    once = batch.of_shared(target, source)
    y = once.index_select(0, rows)
    batch.share(y, once, rows)
    return y


def _embedding(batch: MixedBatch, target: TargetModule, ids: Tensor) -> Tensor:
    """Embedding: the rows of the ids. Ids that all rows share are looked up for each row, since the changes differ."""
    if not batch.packed and len(ids) == 1:
        ids = ids.expand(batch.rows, *ids.shape[1:])
    y: Tensor = type(target.module).forward(target.module, ids).contiguous()
    flat = ids.reshape(-1).long().contiguous()  # packed ones are of 32 bits
    kernels.sparse_lookup_(y.view(-1, y.shape[-1]), flat, batch.segments(flat.shape[0]), batch.changes(target))
    return y


def _layer_norm(batch: MixedBatch, target: TargetModule, x: Tensor) -> Tensor:
    """LayerNorm: normalise all rows, each with its own task's scale and shift."""
    if (y := _norm_of_shared(batch, target, x)) is not None:
        return y
    module: Any = target.module
    return kernels.layer_norm(x.contiguous(), batch.segments(_tokens(x)), batch.changes(target), module.eps)


def _rms_norm(batch: MixedBatch, target: TargetModule, x: Tensor) -> Tensor:
    """RMSNorm: normalise all rows, each with its own task's scale; by the module's own code where it is a variant."""
    if (y := _norm_of_shared(batch, target, x)) is not None:
        return y
    if target.epsilon is not None:
        return kernels.rms_norm(x.contiguous(), batch.segments(_tokens(x)), batch.changes(target), target.epsilon)
    assert target.neutral is not None  # every RMSNorm target has one
    with with_weight(target.module, target.neutral):
        y = type(target.module).forward(target.module, x).contiguous()
    flat = y.view(-1, y.shape[-1])
    kernels.scale_shift_(flat, batch.segments(flat.shape[0]), batch.changes(target))
    return y


def _tokens(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


_FORWARDS: dict[str, Callable[[MixedBatch, TargetModule, Tensor], Tensor]] = {
    LINEAR: _linear,
    CONV1D: _linear,
    EMBEDDING: _embedding,
    LAYER_NORM: _layer_norm,
    RMS_NORM: _rms_norm,
}
