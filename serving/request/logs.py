"""The request log and the audit log: one JSON line for each request, and one for each change by an admin."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from serving.request.context import RequestContext

requests = logging.getLogger("sparsehub.requests")
audit = logging.getLogger("sparsehub.audit")


def write_lines() -> None:
    """Send both logs to standard output, one JSON object a line, for a log collector to parse."""
    handler = LineHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger in (requests, audit):
        logger.setLevel(logging.INFO)
        logger.handlers, logger.propagate = [handler], False


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream that may not take them: its disk is full, its reader gone. Requests go on; how many
    lines failed is a line of its own once the stream takes lines again."""

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        lost, line = self.lost, self.format(record)
        if lost:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"time": time, "event": "lines_lost", "lines": lost}) + self.terminator + line
        try:
            self.stream.write(line + self.terminator)
            self.stream.flush()
            self.lost = 0
        except (OSError, ValueError):  # the standard library would print a traceback for each
            self.lost = lost + 1


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
