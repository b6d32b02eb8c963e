"""Requests and responses of `/v1/admin/catalog`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from serving.protocol.base import ApiModel
from serving.protocol.request_model import check_fields

# requests


class CatalogRequest(ApiModel):
    """What every change of the catalogue has."""

    revision: int | None = None
    """The catalogue's, as the caller saw it; another one by now is 409."""

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, data: Any) -> Any:
        """Raises `FieldError`."""
        check_fields(data)
        return data


class CatalogTaskRequest(CatalogRequest):
    """A change of one task."""

    task: str = Field(min_length=1, max_length=300)
    """A name in the catalogue."""


class AddTaskRequest(CatalogRequest):
    """Serve one more task."""

    reference: str = Field(min_length=1, max_length=300)
    """The task in the hub; its exact version goes into the catalogue."""
    pinned: bool = False
    """Whether it stays in memory."""
    items_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    """A quota for all callers of one replica together; null for none."""
    tokens_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)


class SetOptionsRequest(CatalogTaskRequest):
    """What is given is changed; null takes a quota away."""

    version: str | None = Field(None, min_length=1, max_length=100)
    """The version that every caller gets from now on."""
    pinned: bool = False
    items_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    tokens_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)


class CanaryRequest(CatalogRequest):
    """Give some callers another version."""

    reference: str = Field(min_length=1, max_length=300)
    """The version to try."""
    percent: float = Field(ge=0, le=100, allow_inf_nan=False)
    """Of the callers."""


# responses


class CatalogVersionState(ApiModel):
    """One version of a task."""

    model_config = ConfigDict(from_attributes=True)

    version: str
    digest: str


class CatalogEntryState(ApiModel):
    """One task of the catalogue."""

    model_config = ConfigDict(from_attributes=True)

    stable: CatalogVersionState
    canary: CatalogVersionState | None
    """The version that `canary_percent` of the callers get; null where none is tried."""
    canary_percent: float
    pinned: bool
    items_per_second: float | None
    tokens_per_second: float | None
    before: list[CatalogVersionState]
    """What `stable` was, the last one last."""


class CatalogState(ApiModel):
    """The catalogue as the replica that answers serves it."""

    object: Literal["catalog"]
    where: str
    revision: int
    tasks: dict[str, CatalogEntryState]
    refused: dict[str, str]
    """Entries that could not be taken over, and why; what they were before is served on."""
    error: str | None
    """Why the catalogue could not be read when it was last looked at."""
    draining: int
    """Versions that only finish what has begun."""


class PublishedVersion(ApiModel):
    """One version that the hub has of a task."""

    version: str
    digest: str | None
    """Null where it cannot be read."""
    error: str | None
    """Why it cannot be used; null where it can be read."""


class PublishedVersionList(ApiModel):
    """What the catalogue's hub has of a task, from the lowest version to the highest."""

    object: Literal["list"]
    data: list[PublishedVersion]
