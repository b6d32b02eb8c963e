"""What ends the connections of a worker that was killed, in the process manager: see `connection_guard.py`.

A client whose request was not answered gets an error that says so; a stream of events ends with one.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import resource
import selectors
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.connection_guard import BEGUN, IDLE, PROGRESS, SLOT, STREAMING, WAITING, check_support, socket_path
from serving.protocol.errors import error_body
from serving.request.error_responses import AGAIN

LINGER_SECONDS = 2.0  # for a client to take its answer and to end what it still sends: then the connection is dropped
_OPEN_FILES = 1 << 16  # a manager's descriptors, where the system allows them; many systems allow 1024 if not asked
_ACKNOWLEDGED, _ACKNOWLEDGED_AT = struct.Struct("<Q"), 120  # bytes of Linux's struct tcp_info
_ERROR = error_body(
    "the worker that had this request was killed; to do: send it again, another one starts", 503, code="EngineError"
)


class Guardian:
    """The manager's part: a thread that has a duplicate of every connection of the worker, and ends them after it."""

    def __init__(self, folder: Path):
        """folder: private to this endpoint; workers find the guardian in it. Raises `OSError`."""
        check_support()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < allowed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with socket_path(folder) as path:
            self._listener.bind(path)
        self._listener.listen()
        threading.Thread(target=self._run, name="guardian", daemon=True).start()

    def _run(self) -> None:
        """One worker after the other: the next one says who it is while the last one's clients are answered."""
        while True:
            worker, _ = self._listener.accept()
            with worker, suppress(OSError):
                _guard(worker)


def _guard(worker: socket.socket) -> None:
    """Keep a worker's connections until it ends, then end them. Its first message brings the shared memory."""
    _, descriptors = _receive(worker)
    if not descriptors:
        return
    held: dict[int, int] = {}
    with os.fdopen(descriptors[0], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        while (message := _receive(worker))[0]:
            _take(held, *message)
        connections = {slot: socket.socket(fileno=descriptor) for slot, descriptor in held.items()}
        _end((connection, _state(memory, slot, connection)) for slot, connection in connections.items())


def _receive(worker: socket.socket) -> tuple[bytes, list[int]]:
    """The next message and the descriptors in it; no bytes where the worker has ended."""
    try:
        data, descriptors, _, _ = socket.recv_fds(worker, SLOT.size, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    return data, descriptors


def _take(held: dict[int, int], data: bytes, descriptors: list[int]) -> None:
    """A slot with a connection is one that opens, a slot alone one that is closed."""
    (slot,) = SLOT.unpack(data)
    if slot in held:
        os.close(held.pop(slot))
    if descriptors:  # none where this process may open no more files
        held[slot] = descriptors[0]


def _state(memory: mmap.mmap, slot: int, connection: socket.socket) -> int:
    """What a connection is in, by what its worker wrote and how much of that it could hand on before it ended."""
    flushed, written, before, after = PROGRESS.unpack_from(memory, slot * PROGRESS.size)
    sent = _bytes_sent(connection)
    if sent is None or sent == written:
        return after
    return before if sent == flushed else BEGUN


def _bytes_sent(connection: socket.socket) -> int | None:
    """Bytes that the kernel took: acknowledged by the client, or waiting. None where it says nothing."""
    try:
        while True:  # until no acknowledgement comes in between
            acknowledged = _acknowledged(connection)
            waiting = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]
            if _acknowledged(connection) == acknowledged:
                return acknowledged + int(waiting)
    except (OSError, struct.error):
        return None


def _acknowledged(connection: socket.socket) -> int:
    found = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(_ACKNOWLEDGED.unpack_from(found, _ACKNOWLEDGED_AT)[0])


def _end(connections: Iterable[tuple[socket.socket, int]]) -> None:
    with selectors.DefaultSelector() as selector:
        for connection, state in connections:
            if _answer(connection, state):
                selector.register(connection, selectors.EVENT_READ)
            else:
                connection.close()
        _linger(selector)


def _answer(connection: socket.socket, state: int) -> bool:
    """Send what ends a connection's request; whether there was something to send, and room for it."""
    try:
        if state == IDLE and _is_unread(connection):
            state = WAITING
        if state not in (WAITING, STREAMING):
            return False
        ending = _refusal() if state == WAITING else _last_event()
        sent = connection.send(ending, socket.MSG_DONTWAIT)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return sent == len(ending)


def _is_unread(connection: socket.socket) -> bool:
    """Whether a request has come of which the worker had read nothing."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def _linger(selector: selectors.BaseSelector) -> None:
    """A socket that is closed with bytes unread resets the connection, and the answer with it: they are read first."""
    end = time.monotonic() + LINGER_SECONDS
    while selector.get_map() and (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            connection: Any = key.fileobj
            with suppress(OSError):
                if connection.recv(1 << 16, socket.MSG_DONTWAIT):
                    continue
            selector.unregister(connection)
            connection.close()
    for key in selector.get_map().values():
        left_over: Any = key.fileobj
        left_over.close()


def _refusal() -> bytes:
    body = json.dumps(_ERROR).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"retry-after: {AGAIN}",
        "connection: close",
    )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _last_event() -> bytes:
    """An event with the error, as a chunk, and the chunk that ends the body."""
    event = f"data: {json.dumps(_ERROR)}\n\n".encode()
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
