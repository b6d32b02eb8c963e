"""The heads that a task may have: one, or one for each way to read a pair, of which that of the best probe is taken."""

from __future__ import annotations

from sparsehub.backbone import Checkpoint
from sparsehub.backbone.backbone import read_config
from sparsehub.package.pooling import default_pooling, normalizes
from sparsehub.package.task_spec import (
    COSINE,
    EMBEDDING,
    JOINT,
    LINEAR,
    MULTIPLE_CHOICE,
    NONE,
    REGRESSION,
    SEPARATE,
    HeadSpec,
    TaskSpec,
)
from sparsehub.training.config import TrainConfig


def head_candidates(config: TrainConfig, task: TaskSpec, checkpoint: Checkpoint) -> list[HeadSpec]:
    """The heads that a run may have, by its settings."""
    if task.kind == EMBEDDING:
        pooling = config.pooling or _pooling(checkpoint)
        return [HeadSpec(NONE, pooling, normalize=config.normalize or normalizes(checkpoint.folder))]
    if not config.has_linear_head:
        return [task.head]
    pooling, pairs = config.pooling or _pooling(checkpoint), [config.pair] if config.pair else _pairs(task)
    return [HeadSpec(LINEAR, pooling, config.normalize, pair) for pair in pairs]


def probe_heads(task: TaskSpec, checkpoint: Checkpoint) -> list[HeadSpec]:
    """The heads that a probe of a package's task may have: the package's own, or the usual ones where that is
    transformers' class."""
    if task.head.type == LINEAR:
        return [task.head]
    return [HeadSpec(LINEAR, _pooling(checkpoint), normalize=False, pair=pair) for pair in _pairs(task)]


def _pooling(checkpoint: Checkpoint) -> str:
    return default_pooling(checkpoint.folder, read_config(checkpoint))


def _pairs(task: TaskSpec) -> list[str]:
    """The ways to read a task's texts."""
    if len(task.text_fields) != 2 or task.kind == MULTIPLE_CHOICE:
        return [JOINT]
    return [JOINT, SEPARATE, *([COSINE] if task.kind == REGRESSION else [])]
