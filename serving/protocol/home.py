"""The response of `GET /`."""

from __future__ import annotations

from typing import Literal

from serving.protocol.base import ApiModel


class EndpointHome(ApiModel):
    """Where things are, as paths of this endpoint; the same for everybody, with a key or without."""

    object: Literal["endpoint"]
    name: Literal["sparsehub"]
    console: str | None
    """The page for browsers; null where it is off."""
    docs: str
    """All routes, to read and to try in a browser."""
    openapi: str
    """All routes, for programs."""
    models: str
    """What can stand in `model`."""
    tasks: str
    """Where each task is, and who uses it."""
    metrics: str
    """For Prometheus."""
    ready: str
    """200 while requests are answered."""
