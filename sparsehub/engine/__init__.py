"""Many tasks on one backbone: requests in, answers out. Knows no HTTP, no BentoML, no Ray."""

from sparsehub.engine.engine import BatchReport, Engine, Ticket
from sparsehub.engine.scheduler import Limits

__all__ = ["BatchReport", "Engine", "Limits", "Ticket"]
