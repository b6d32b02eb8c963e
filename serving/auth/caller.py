"""Who sent a request, and what he may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from serving.auth.keys import PREDICT, ROLES, WATCH, Key
from serving.auth.rate_limit import TokenBucket
from sparsehub.errors import ForbiddenError

BACKBONE = "backbone"


@dataclass(frozen=True)
class Caller:
    """name: of the key; may: what its role allows; requests, tokens: what is left of its rates."""

    name: str
    may: frozenset[str]
    tasks: tuple[str, ...] = ("*",)
    requests: TokenBucket | None = None
    tokens: TokenBucket | None = None

    @property
    def sees_all(self) -> bool:
        return "*" in self.tasks

    def may_ask(self, task: str) -> bool:
        """Whether it may ask the task of this name (no version)."""
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)

    def check_task(self, task: str) -> None:
        """Raises `ForbiddenError`, whether there is such a task or not: a caller learns nothing of others' tasks."""
        if not self.may_ask(task):
            raise ForbiddenError(f"the key {self.name} is not for the task {task[:100]!r}", fix="ask with another key")


ANONYMOUS = Caller("anonymous", ROLES[PREDICT] | ROLES[WATCH])
"""Whoever calls an endpoint without keys. Nothing that is served can be changed without a key."""


def caller_of(key: Key, requests: TokenBucket | None, tokens: TokenBucket | None) -> Caller:
    return Caller(key.name, ROLES[key.role], key.tasks, requests, tokens)
