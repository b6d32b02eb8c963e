"""One request as the endpoint sees it, from its first byte to its last: who asks, and what was done for him."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serving.auth import ANONYMOUS, Caller

if TYPE_CHECKING:
    from serving.catalog.router import Routed


@dataclass
class RequestContext:
    """The gate makes one for every request. client: the address that it came from; digest, task: of what answered;
    routed: what references mean for all of this request, however the catalogue moves meanwhile."""

    id: str
    caller: Caller
    client: str
    began: float = field(default_factory=time.monotonic)
    task: str = ""
    digest: str = ""
    items: int = 0
    tokens: int = 0
    routed: dict[str, Routed] = field(default_factory=dict)

    @property
    def sticky(self) -> str:
        """Whom a canary's share is counted by: the key; the address where there are no keys."""
        return self.client if self.caller is ANONYMOUS else self.caller.name


_CURRENT: ContextVar[RequestContext] = ContextVar("call")


def current_request() -> RequestContext:
    """The request that is being answered. There is none outside of the gate: nothing gets past it unasked."""
    return _CURRENT.get()


def enter(call: RequestContext) -> None:
    """Make this the current request of the running task."""
    _CURRENT.set(call)
