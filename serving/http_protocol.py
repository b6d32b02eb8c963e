"""HTTP connections within bounds: of their number, of the size of a head and of the time that a client may take.

uvicorn reads a head of any size for any time. BentoML starts it with its defaults, so `install` makes this its default.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, cast

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.connection_guard import BEGUN, IDLE, WAITING, ConnectionGuard, GuardedTransport
from serving.protocol.errors import error_body
from serving.settings import Settings
from sparsehub.settings import PREFIX

FRAMING = 8  # bytes on the wire for each of a body's, in chunks of one byte; trailers are within it


@dataclass(frozen=True)
class ConnectionBounds:
    """What one connection, and all of them together, may take."""

    connections: int
    per_address: int
    head: int  # bytes of a request line and its headers
    body: int  # bytes of a body on the wire
    seconds: float  # for a head to come, for an answer's next bytes to be taken, and until an idle connection is closed


class BoundedProtocol(HttpToolsProtocol):
    """One connection; uvicorn makes it. `set_bounds` says what its bounds are."""

    bounds: ClassVar[ConnectionBounds]
    guard: ClassVar[ConnectionGuard | None] = None
    _addresses: ClassVar[Counter[str]] = Counter()

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._in_head, self._complete = True, True  # a head is awaited; no body is
        self._received = self._fields = 0  # bytes of this head or body, and of headers
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._address: str | None = None
        self._guarded: GuardedTransport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses one connection too many."""
        super().connection_made(transport)
        self._guarded = self.guard.guarded(transport) if self.guard else None
        self.transport = self._guarded or transport
        self._address = self.client[0] if self.client else ""
        self._addresses[self._address] += 1
        self._arm()
        bounds = self.bounds
        if self._addresses.total() > bounds.connections or self._addresses[self._address] > bounds.per_address:
            self._refuse(503, "too many connections are open")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._address is not None:
            self._addresses[self._address] -= 1
            if not self._addresses[self._address]:
                del self._addresses[self._address]
        self._disarm()
        self.resume_writing()
        if self._guarded is not None:
            self._guarded.release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._received > self.bounds.head + len(data):
            self._refuse(431, "the request's headers are too large")
        elif not self._in_head and self._received > self.bounds.body + len(data):
            self._close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._complete, self._received, self._fields = True, False, 0, 0
        self._arm()
        if self._guarded is not None:
            self._guarded.request_begins()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm()
        self._in_head, self._received = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._complete = True
        super().on_message_complete()
        if self.cycle.response_complete:
            self._arm()
            self._note_state()

    def on_response_complete(self) -> None:
        """What a client still sends of a body that nobody reads is dropped, but not for ever."""
        super().on_response_complete()
        if self.cycle.response_complete and not self._in_head:
            self._arm()
        self._note_state()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.bounds.seconds, self._close)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        """Also where the parser stopped because `_count` did."""
        if self._fields > self.bounds.head:
            self._refuse(431, "the request's headers are too large")
        else:
            super().send_400_response(msg)

    def _should_upgrade_to_ws(self) -> bool:
        return False  # no route speaks it, and a connection that is handed on has no bounds

    def _unsupported_upgrade_warning(self) -> None:
        """Strangers write no line of the log."""

    def _count(self, data: bytes) -> None:
        self._fields += len(data)
        if self._fields > self.bounds.head:
            raise ValueError("the headers are too large")  # the parser stops, and `send_400_response` answers

    def _note_state(self) -> None:
        """What the connection is in after an answer: nothing, its next request, or the rest of a body."""
        if self._guarded is None:
            return
        if not self.cycle.response_complete or (self._in_head and not self._complete):
            self._guarded.turn(WAITING)
        else:
            self._guarded.turn(IDLE if self._complete else BEGUN)

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps(error_body(message, status)).encode()
        lines = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        )
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self._close()

    def _arm(self) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(self.bounds.seconds, self._close)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        """At once where the client does not take what was written."""
        if self.transport.is_closing() or self._stalled is not None:
            self.transport.abort()
            return
        self.transport.close()
        self.loop.call_later(self.bounds.seconds, self.transport.abort)


def install() -> None:
    """Make this uvicorn's protocol where none is named: at import, before uvicorn reads which one it is."""
    cast("dict[str, Any]", HTTP_PROTOCOLS)["auto"] = f"{__name__}:{BoundedProtocol.__name__}"


def set_guard(guard: ConnectionGuard | None) -> None:
    """Say who ends the connections of this process where it is killed; before the endpoint listens."""
    BoundedProtocol.guard = guard


def trust_proxies(environment: MutableMapping[str, str]) -> None:
    """Have uvicorn believe `X-Forwarded-For` and `X-Forwarded-Proto` of the proxies that the settings name, and of no
    other: by itself it believes whoever is on this machine. At import, before it reads this variable."""
    environment["FORWARDED_ALLOW_IPS"] = environment.get(f"{PREFIX}PROXIES", "")


def set_bounds(settings: Settings) -> None:
    """Say what connections may take; before the endpoint listens."""
    BoundedProtocol.bounds = ConnectionBounds(
        settings.connections,
        settings.address_connections,
        settings.header_kib << 10,
        FRAMING * (settings.body_kib << 10),
        settings.header_seconds,
    )
