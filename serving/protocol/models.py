"""Responses of the routes that list models and tasks, and of the Open Inference Protocol's health checks."""

from __future__ import annotations

from typing import Literal

from serving.protocol.base import ApiModel


class ModelCard(ApiModel):
    """Something that can stand in `model`. The backbone has no field after `parent`; a task whose package was not read
    yet has none after `bytes`."""

    id: str
    """The backbone's id, or a task's `name@version`."""
    object: Literal["model"]
    created: int
    """Seconds since 1970."""
    owned_by: str
    parent: str | None
    """The backbone that a task changes; null for the backbone itself."""
    version: str | None = None
    digest: str | None = None
    where: str | None = None
    """Where its weights are: `device`, `host`, `loading` or `disk`."""
    bytes: int | None = None
    """On the device."""
    kind: str | None = None
    labels: list[str] | None = None
    fields: list[str] | None = None
    """What an input object has to hold."""
    max_length: int | None = None
    """Tokens of one input."""
    nnz: int | None = None
    """How many entries of the backbone it changes."""


class ModelList(ApiModel):
    """The backbone and every task, as far as the caller may ask them."""

    object: Literal["list"]
    data: list[ModelCard]


class TaskState(ApiModel):
    """Where a task is, how large, and who uses it."""

    id: str
    """`name@version`."""
    object: Literal["task"]
    name: str
    version: str
    digest: str
    role: str | None
    """`stable`, `canary` or `draining`; null without a catalogue."""
    where: str
    """Where its weights are: `device`, `host`, `loading` or `disk`."""
    pinned: bool
    bytes: int
    """On the device."""
    nnz: int | None
    """How many entries of the backbone it changes; null until its package was read."""
    kind: str | None
    """Null until its package was read."""
    references: int
    """Rows that wait or run, and one for the task that is in the arena."""
    why_swap: str | None
    """Why its rows cannot run in one batch with other tasks'; null where they can."""
    why_unshared: str | None
    """Why its rows share no layers with rows of the same text for other tasks; null where they can."""
    requests: int
    items: int
    failed: int
    last_used: float | None
    """Seconds since 1970; null where nobody has asked yet."""
    p50_ms: float | None
    """Of the latest requests."""
    p99_ms: float | None
    replica: str | None = None
    """On Ray Serve, which replica this is the state of; absent elsewhere."""


class TaskStateList(ApiModel):
    """Every task that the caller may ask; a version that drains is still there."""

    object: Literal["list"]
    data: list[TaskState]
