"""The request log and the audit log: one JSON line for each request, and one for each change by an admin."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from serving.request.context import RequestContext

requests = logging.getLogger("sparsehub.requests")
audit = logging.getLogger("sparsehub.audit")


def write_lines() -> None:
    """Send both logs to standard output, one JSON object a line, for a log collector to parse."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger in (requests, audit):
        logger.setLevel(logging.INFO)
        logger.handlers, logger.propagate = [handler], False


def log_request(call: RequestContext, method: str, path: str, status: int, seconds: float) -> None:
    """Log one answered request; never an input or a key."""
    if requests.isEnabledFor(logging.INFO):
        several = {"tasks": [part.info.reference for part in call.several]} if call.several else {}
        _write(
            requests,
            "request",
            call,
            method=method,
            path=path[:200],
            status=status,
            ms=round(seconds * 1e3, 2),
            task=call.task,
            digest=call.digest,
            items=call.items,
            tokens=call.tokens,
            **several,
        )


def log_act(call: RequestContext, act: str, outcome: str, **details: Any) -> None:
    """Log what an admin did, or tried to do."""
    _write(audit, "audit", call, act=act, outcome=outcome, **details)


def _write(logger: logging.Logger, event: str, call: RequestContext, **fields: Any) -> None:
    """One JSON line: when, what, which request, and who asked it."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    caller = {"request_id": call.id, "key": call.caller.name, "client": call.client}
    logger.info("%s", json.dumps({"time": time, "event": event, **caller, **fields}))
