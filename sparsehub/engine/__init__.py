"""Many tasks on one backbone: requests in, answers out. Knows no HTTP, no BentoML, no Ray."""

from sparsehub.engine.engine import Engine
from sparsehub.engine.generation import Completion, Generation, GenerationLimits, Piece, Sampling
from sparsehub.engine.holding import Budgets
from sparsehub.engine.report import BatchReport, TaskStatus
from sparsehub.engine.scheduler import Limits
from sparsehub.engine.tasks import Task, TaskInfo
from sparsehub.engine.ticket import Ticket

__all__ = [
    "BatchReport",
    "Budgets",
    "Completion",
    "Engine",
    "Generation",
    "GenerationLimits",
    "Limits",
    "Piece",
    "Sampling",
    "Task",
    "TaskInfo",
    "TaskStatus",
    "Ticket",
]
