"""What text generation shares with the rest of an engine."""

from __future__ import annotations

from dataclasses import dataclass

from sparsehub.backbone import Backbone
from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.batch_planner import BatchPlanner
from sparsehub.engine.generation.cache_limits import GenerationLimits
from sparsehub.engine.lane_policy import LanePolicy
from sparsehub.engine.residency import Residency
from sparsehub.engine.target_modules import TargetModules


@dataclass(frozen=True)
class GenerationContext:
    """The engine's parts that a generator is made of and works with; `Engine` makes it for `make_generator`."""

    backbone: Backbone
    targets: TargetModules  # what a mixed step can change
    arena: ArenaManager  # its lock is held for the time of a step
    residency: Residency
    lanes: LanePolicy  # which texts may run together
    planner: BatchPlanner  # its `mode` rules the steps too
    limits: GenerationLimits
    graphs: bool  # whether decode steps on a GPU may become CUDA graphs
