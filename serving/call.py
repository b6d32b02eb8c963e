"""One request as the endpoint sees it, from its first byte to its last: who asks, and what was done for him."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from serving.access import Caller


@dataclass
class Call:
    """The gate makes one for every request. client: the address that it came from; digest, task: of what answered."""

    id: str
    caller: Caller
    client: str
    began: float = field(default_factory=time.monotonic)
    task: str = ""
    digest: str = ""
    items: int = 0
    tokens: int = 0


_CURRENT: ContextVar[Call] = ContextVar("call")


def current_call() -> Call:
    """The request that is being answered. There is none outside of the gate: nothing gets past it unasked."""
    return _CURRENT.get()


def enter(call: Call) -> None:
    """Make this the current request of the running task."""
    _CURRENT.set(call)
