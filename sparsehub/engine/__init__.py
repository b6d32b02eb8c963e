"""Many tasks on one backbone: requests in, answers out. Knows no HTTP, no BentoML, no Ray."""

from sparsehub.engine.engine import Engine, Ticket
from sparsehub.engine.holding import Budgets
from sparsehub.engine.report import BatchReport, TaskStatus
from sparsehub.engine.scheduler import Limits
from sparsehub.engine.tasks import Task, TaskInfo

__all__ = ["BatchReport", "Budgets", "Engine", "Limits", "Task", "TaskInfo", "TaskStatus", "Ticket"]
