"""The engine: many tasks on one backbone, requests in, answers out. Knows no HTTP, no BentoML, no Ray."""

from sparsehub.engine.engine import Engine
from sparsehub.engine.generation import Completion, Generation, GenerationLimits, Sampling, TextDelta
from sparsehub.engine.pending_request import AcquiredTask, PendingRequest, PreparedRequest
from sparsehub.engine.scheduler import Limits
from sparsehub.engine.stats import BatchObserver, BatchReport, TaskStatus
from sparsehub.engine.task_handle import Budgets
from sparsehub.engine.task_registry import Task, TaskInfo

__all__ = [
    "AcquiredTask",
    "BatchObserver",
    "BatchReport",
    "Budgets",
    "Completion",
    "Engine",
    "Generation",
    "GenerationLimits",
    "Limits",
    "TextDelta",
    "Sampling",
    "Task",
    "TaskInfo",
    "TaskStatus",
    "PendingRequest",
    "PreparedRequest",
]
