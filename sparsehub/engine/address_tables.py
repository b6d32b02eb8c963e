"""Where the changes of a batch's tasks are in memory, as the kernels of mixed batches are told it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.target_modules import TargetModule, TargetModules


def address_tables(targets: TargetModules, adapters: Sequence[AdapterWeights | None]) -> Tensor:
    """[targets, slots, ADDRESSES] int64 on the device: where the change of every target is for every slot; on an int8
    base a last one says where its own weights are, for programs."""
    base = targets.base_addresses() if None in adapters else None
    each: list[Any] = [base if a is None else a.table for a in adapters]
    if targets.int8 is not None:
        each.append(targets.int8.addresses(len(targets.targets)))
    tables: Tensor = torch.stack(each, dim=1)
    return tables.to(targets.device)


class PartsBySlot(Sequence[Any]):
    """The changes of one target by slot; looked up only by kernels that do not read the address tables."""

    __slots__ = ("adapters", "target")

    def __init__(self, adapters: Sequence[AdapterWeights | None], target: TargetModule):
        self.adapters, self.target = adapters, target

    def __len__(self) -> int:
        return len(self.adapters)

    def __getitem__(self, slot: Any) -> Any:
        adapter = self.adapters[slot]
        return self.target.base if adapter is None else adapter.parts.get(self.target.index, self.target.base)
