"""One request as the endpoint sees it, from its first byte to its last."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from serving.auth import ANONYMOUS, Caller
from serving.catalog.router import Routed
from sparsehub.engine import TaskInfo
from sparsehub.engine.fair_share import ANYONE, Tenant


@dataclass
class AnsweredTask:
    """One task's part of a request."""

    info: TaskInfo
    items: int
    tokens: int
    status: int | None = None  # of HTTP, as if it had been asked alone; None where it is that of the request


@dataclass
class RequestContext:
    """Per-request context: caller, what was routed where, counters. The middleware makes one for every request."""

    id: str
    caller: Caller
    client: str  # the address that it came from
    began: float = field(default_factory=time.monotonic)
    served: TaskInfo | None = None  # the very package that answers; None for the plain backbone
    items: int = 0
    tokens: int = 0
    several: list[AnsweredTask] = field(default_factory=list)  # the tasks of a request that asks several
    routed: dict[str, Routed] = field(default_factory=dict)  # what `model` means for all of this request

    @property
    def task(self) -> str:
        """`name@version` of what answers; empty where no task does."""
        return "" if self.served is None else self.served.reference

    @property
    def digest(self) -> str:
        """Of the package that answers; empty where none does."""
        return "" if self.served is None else self.served.digest

    @property
    def answered(self) -> list[AnsweredTask]:
        """The tasks that answer: one, several, or none where the plain backbone does."""
        alone = [] if self.served is None else [AnsweredTask(self.served, self.items, self.tokens)]
        return self.several or alone

    def count(self, task: TaskInfo | None, items: int, tokens: int) -> None:
        """Note what was submitted. task: the very package that will answer, None for the plain backbone."""
        self.served = task or self.served
        self.items, self.tokens = items, tokens

    @property
    def tenant(self) -> Tenant:
        """Who is charged for what the engine does for this request; without keys it is one for everybody."""
        return ANYONE if self.caller is ANONYMOUS else Tenant(self.caller.name, self.caller.weight)

    @property
    def sticky(self) -> str:
        """By what a canary's share is counted: the name of the key, or the address where there are no keys."""
        return self.client if self.caller is ANONYMOUS else self.caller.name


_CURRENT: ContextVar[RequestContext] = ContextVar("call")


def current_request() -> RequestContext:
    """The context of the request that is being answered; the middleware has set it."""
    return _CURRENT.get()


def enter(call: RequestContext) -> None:
    """Make this the current request of the running task."""
    _CURRENT.set(call)
