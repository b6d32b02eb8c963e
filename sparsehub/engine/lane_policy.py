"""Which tasks may share a batch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from sparsehub.engine.batch_planner import AUTO, BatchPlanner
from sparsehub.engine.batch_rows import RowKey
from sparsehub.engine.cost_model import SWAP, TRUNK
from sparsehub.engine.layer_stack import LayerStack
from sparsehub.engine.residency import Residency

MIXED_LANE, BACKBONE_LANE = "mixed", "backbone"


@dataclass(frozen=True)
class LanePolicy:
    """Puts tasks that can be mixed in one lane, and every other task in a lane of its own; only what is in one lane may
    share a batch. `Scheduler` asks it for rows, `AdmissionQueue` for texts."""

    residency: Residency
    planner: BatchPlanner  # whose `mode` may rule mixing out
    mixes: bool  # whether anything can be mixed on this backbone
    layers: LayerStack | None = None  # its layers, where rows of one text may share them

    def lane_of(self, key: RowKey) -> Hashable | None:
        """The lane of a scheduler's key; None while its task is not on the device."""
        return self.of_task(key[0])

    def own_share(self, key: RowKey) -> float:
        """The share of the layers that rows of a key run by themselves where another task has their text."""
        if self.layers is None or self.planner.mode not in (AUTO, TRUNK):
            return 1.0
        if key[0] is None:
            return 0.0
        handle = self.residency.handle(key[0])
        resident = None if handle is None else handle.resident
        if resident is None or resident.adapter is None:
            return 1.0
        return 1.0 - max(0, resident.adapter.first) / len(self.layers.modules)

    def of_task(self, digest: str | None) -> Hashable | None:
        """The lane of a task or (None) of the plain backbone; None while the task is not on the device."""
        mixes = self.mixes and (self.planner.mode != SWAP or self.planner.only_mixed)
        if digest is None:
            return MIXED_LANE if mixes else BACKBONE_LANE
        handle = self.residency.handle(digest)
        if handle is None or (resident := handle.resident) is None:
            return None
        return MIXED_LANE if mixes and resident.adapter is not None else digest
