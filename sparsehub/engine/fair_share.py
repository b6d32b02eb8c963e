"""Whose turn it is, for `Scheduler` and `AdmissionQueue`: fair queueing between tenants by weight, then between the
tasks of one tenant, then by age.

Who is given tokens moves ahead in a virtual time, by the tokens over its weight. The next is who would be least ahead
after it was given what it wants: so little goes before much, and much is not put off for ever. The present is where the
last of those is that want something. Who had nothing to do begins there: it has saved nothing up.
Sources: Demers, Keshav and Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", SIGCOMM 1989; Goyal, Vin
and Cheng, "Start-time Fair Queuing", IEEE/ACM Transactions on Networking 5(5), 1997.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar


@dataclass(frozen=True)
class Tenant:
    """Who is charged for what runs: an endpoint's API key."""

    name: str
    weight: float = 1.0  # its share of the machine is this over the weights of all who want something


ANYONE = Tenant("")
"""The tenant where there is only one: a notebook, or an endpoint without keys. It may have all of a queue."""


class Flow(NamedTuple):
    """What a row or a text belongs to."""

    tenant: Tenant = ANYONE
    task: Hashable = None  # the digest of what answers; None for the plain backbone


ANYBODYS = Flow()
LATELY = 10.0  # seconds
SHORT = 0.05  # seconds that a batch takes about, where several tenants ask
WORTH = 512  # tokens of a batch, below which each costs more on a CPU
HASTE = 0.05  # of the machine's time that may be lost to batches without others' rows, for those that want little
SOON = 1.0  # seconds: nothing is refused because it is predicted to wait for less
_NOTHING: Mapping[Tenant, float] = {}


class Waiting(Protocol):
    """What waits for its turn: the scheduler's `Item`, or a `Generation`."""

    arrived: float  # when it was queued, on the monotonic clock

    @property
    def flow(self) -> Flow:
        """Whose it is."""


W = TypeVar("W", bound=Waiting)


class VirtualTime:
    """How far ahead each of some sharers is of the present."""

    def __init__(self) -> None:
        self._now = 0.0
        self._times: dict[Hashable, float] = {}  # of those that are ahead of the present

    def ahead(self, sharer: Hashable) -> float:
        """What it was given since the last of those that want something was, over its weight."""
        return max(0.0, self._times.get(sharer, 0.0) - self._now)

    def advance(self, wanting: Iterable[Hashable]) -> None:
        """The present moves on to where the last of those is that want something."""
        self._now += min(map(self.ahead, wanting))
        self._times = {who: time for who, time in self._times.items() if time > self._now}

    def charge(self, sharer: Hashable, amount: float) -> None:
        """Move it ahead by what it was given, over its weight."""
        self._times[sharer] = self._now + self.ahead(sharer) + amount


class HasteBudget:
    """Seconds that may be lost: a row that runs without others to fill its batch is answered early, and costs more."""

    def __init__(self) -> None:
        self._left = 0.0

    def earn(self, seconds: float) -> None:
        """A batch took so long."""
        self._left = min(SHORT, self._left + HASTE * seconds)

    def spend(self, seconds: float) -> bool:
        """Whether so much may be lost now; it is then."""
        if seconds > self._left:
            return False
        self._left -= max(0.0, seconds)
        return True


class FairShare:
    """Says whose turn it is. Not thread-safe: its owner's lock guards it."""

    def __init__(self) -> None:
        self._tenants = VirtualTime()
        self._tasks: dict[str, VirtualTime] = {}  # by the tenant's name
        self._seen: dict[str, float] = {}  # when something of a tenant last ran, on the monotonic clock

    def tokens_of_batch(self, most: int, per_second: float) -> int:
        """Tokens of the next batch. Where several tenants had something run lately it is a short one: whoever comes
        next waits for it. most: that it may have; per_second: that run, 0 where that is not known."""
        limit = time.monotonic() - LATELY
        self._seen = {name: seen for name, seen in self._seen.items() if seen > limit}
        if len(self._seen) < 2 or not per_second:
            return most
        return min(most, max(WORTH, int(per_second * SHORT)))

    def next(self, heads: Iterable[W], wanted: Mapping[Tenant, float] = _NOTHING) -> W:
        """Which of those that wait is next. heads: the oldest of each flow at least, and one in all; wanted: tokens
        that each tenant would be given."""
        waiting: dict[Tenant, list[W]] = {}
        for head in heads:
            waiting.setdefault(head.flow.tenant, []).append(head)
        tenant = min(waiting, key=lambda one: (self._after(one, wanted), min(h.arrived for h in waiting[one])))
        tasks, own = self._tasks.setdefault(tenant.name, VirtualTime()), waiting[tenant]
        tasks.advance(head.flow.task for head in own)
        return min(own, key=lambda head: (tasks.ahead(head.flow.task), head.arrived))

    def advance(self, wanting: Iterable[Tenant]) -> None:
        """Time goes on. wanting: all tenants for which something waits that could run."""
        self._tenants.advance({tenant.name for tenant in wanting})

    def ahead(self, tenant: Tenant) -> float:
        """How far ahead a tenant is, in tokens at weight 1."""
        return self._tenants.ahead(tenant.name)

    def charge(self, flow: Flow, tokens: int) -> None:
        """Tokens of this flow are run, at its turn or beside others."""
        self._tenants.charge(flow.tenant.name, tokens / flow.tenant.weight)
        self._seen[flow.tenant.name] = time.monotonic()
        self._tasks.setdefault(flow.tenant.name, VirtualTime()).charge(flow.task, tokens)

    def forget(self, tenant: Tenant) -> None:
        """Nothing of a tenant waits any more: between its tasks all is even."""
        self._tasks.pop(tenant.name, None)

    def _after(self, tenant: Tenant, wanted: Mapping[Tenant, float]) -> float:
        return self.ahead(tenant) + wanted.get(tenant, 0.0) / tenant.weight


def most_of(tenant: Tenant, tenants: Iterable[Tenant], held: int, free: int, others: float = 1.0) -> float:
    """How much of something a tenant may hold in all, of which it holds `held` and `free` is left.

    What it holds may be `others` times what is left for everybody else, and less by its weight beside the largest of
    `tenants`: several that take all they can share it, and there is always room for who comes next.
    Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds", IEEE/ACM Transactions on Networking 6(2), 1998.
    """
    if tenant == ANYONE:
        return math.inf
    share = others * tenant.weight / max(tenant.weight, *(other.weight for other in tenants), 0.0)
    return (held + free) * share / (1 + share)
