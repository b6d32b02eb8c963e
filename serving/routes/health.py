"""GET /healthz, /readyz, /metrics. Under BentoML its own routes of these names come first and ask the same engine."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from serving.request.service import RunningService

router = APIRouter()
UNREADY: dict[str, Any] = {
    "description": "The engine takes no work",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}


@router.get("/healthz", response_model=str, response_class=PlainTextResponse)
async def healthz() -> PlainTextResponse:
    """The process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz", response_model=str, response_class=PlainTextResponse, responses={503: UNREADY})
async def readyz(service: RunningService) -> PlainTextResponse:
    """200 while the engine takes work, 503 otherwise."""
    healthy = service.engine.healthy
    return PlainTextResponse("ready\n" if healthy else "the engine is unhealthy\n", 200 if healthy else 503)


@router.get("/metrics", response_model=str, response_class=PlainTextResponse)
async def metrics(service: RunningService) -> PlainTextResponse:
    """Prometheus' text format."""
    return PlainTextResponse(service.metrics.text(service.engine, service.reconciler), media_type=CONTENT_TYPE_LATEST)
