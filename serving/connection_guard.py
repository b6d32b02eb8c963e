"""What a worker tells of its connections, so that the process manager can answer their clients if it is killed.

The kernel closes a connection with its last file descriptor. So the worker hands the manager a duplicate of each
socket that it accepts (`ConnectionGuard`), and shared memory says how far each connection's answer is
(`GuardedTransport`); `guardian.py` is the manager's side. A request passes nothing for it; a connection costs a message
when it opens and one when it closes.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger("sparsehub")
# What a connection is in: no request, one that is not answered, an answer that only its worker can end, a stream of
# events whose every event is sent whole.
IDLE, WAITING, BEGUN, STREAMING = range(4)
SOCKET_FILE = "guard"  # in the folder of `supervision.py`
SLOT = struct.Struct("<I")  # a message: with a connection's descriptor it opens, alone it is closed
# Of a connection, in shared memory: two counts of bytes sent, and what it is in when the kernel has exactly so many.
# The first is of the last time that everything was handed on.
PROGRESS = struct.Struct("<QQBB6x")
_PATIENCE = 0.2  # seconds for the manager to take a message; then it is given up once for all


def check_support() -> None:
    """Raises `OSError` where the system passes no sockets between processes, or has no memory that they can share."""
    if not (hasattr(socket, "SOCK_SEQPACKET") and hasattr(socket, "MSG_CMSG_CLOEXEC") and hasattr(os, "memfd_create")):
        raise OSError("this system cannot hand sockets to another process")


@contextmanager
def socket_path(folder: Path) -> Iterator[str]:
    """The path of the guardian's socket, by an open folder: an address holds 107 bytes, a folder may need more."""
    descriptor = os.open(folder, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_FILE}"
    finally:
        os.close(descriptor)


class ConnectionGuard:
    """The worker's part: what tells the manager's guardian which connections there are and how far they are."""

    def __init__(self, folder: Path, connections: int):
        """folder: of the `Guardian`; connections: as many as may be open. Raises `OSError`."""
        check_support()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._manager.settimeout(_PATIENCE)
        with socket_path(folder) as path:
            self._manager.connect(path)
        memory = os.memfd_create("sparsehub-connections")
        os.ftruncate(memory, connections * PROGRESS.size)
        self._memory = mmap.mmap(memory, connections * PROGRESS.size)
        socket.send_fds(self._manager, [SLOT.pack(0)], [memory])
        os.close(memory)
        self._free = list(range(connections))
        self._lost = False

    def guarded(self, transport: asyncio.Transport) -> GuardedTransport | None:
        """The transport of a connection that opens, guarded; None where it cannot be, and is as it is."""
        if self._lost or not self._free or transport.get_extra_info("sslcontext") is not None:
            return None  # what is encrypted, nobody else can go on with
        slot = self._free.pop()
        self.note(slot, 0, 0, IDLE, IDLE)
        self._tell(slot, [transport.get_extra_info("socket").fileno()])
        return GuardedTransport(transport, self, slot)

    def note(self, slot: int, flushed: int, written: int, before: int, after: int) -> None:
        """What a connection is in: `before` once so many bytes are `flushed`, `after` once all that is `written` is."""
        PROGRESS.pack_into(self._memory, slot * PROGRESS.size, flushed, written, before, after)

    def release(self, slot: int) -> None:
        """A connection is closed: its duplicate can go, and another may have its slot."""
        self.note(slot, 0, 0, BEGUN, BEGUN)  # where the message is lost, nothing is sent to it
        self._tell(slot, [])
        self._free.append(slot)

    def _tell(self, slot: int, descriptors: list[int]) -> None:
        if self._lost:
            return
        try:
            socket.send_fds(self._manager, [SLOT.pack(slot)], descriptors)
        except OSError as error:
            self._lost = True
            log.warning("the process manager does not answer (%s): connections are guarded no more", error)


class GuardedTransport(asyncio.Transport):
    """The transport of one connection: it notes how far the answer is on its way. `BoundedProtocol` says the rest."""

    def __init__(self, transport: asyncio.Transport, guard: ConnectionGuard, slot: int):
        super().__init__()
        self._transport, self._guard, self._slot = transport, guard, slot
        self._flushed, self._before = 0, IDLE
        self._written, self._state = 0, IDLE

    def request_begins(self) -> None:
        """Also where an earlier request of this connection is not answered yet: then that one counts."""
        if self._state == IDLE:
            self.turn(WAITING)

    def turn(self, state: int, size: int = 0) -> None:
        """The connection is in this state, once the next `size` bytes are sent."""
        if not self._transport.get_write_buffer_size():
            self._flushed, self._before = self._written, self._state if size else state
        self._written += size
        self._state = state
        self._guard.note(self._slot, self._flushed, self._written, self._before, state)

    def release(self) -> None:
        """The connection is lost. Its client sees so at once, whenever the manager drops the duplicate."""
        descriptor = self._transport.get_extra_info("socket").fileno()
        with suppress(OSError):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
            try:
                connection.shutdown(socket.SHUT_RDWR)
            finally:
                connection.detach()  # the transport closes it
        self._guard.release(self._slot)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.turn(self._after(data), len(data))
        self._transport.write(data)

    def _after(self, data: bytes | bytearray | memoryview) -> int:
        """What the connection is in when these bytes of an answer are sent."""
        if self._state != WAITING:
            return STREAMING if self._state == STREAMING else BEGUN
        head = bytes(data)
        if head.startswith(b"HTTP/1.1 1"):  # "go on": the answer itself follows
            return WAITING
        streams = b"content-type: text/event-stream" in head and b"transfer-encoding: chunked" in head
        return STREAMING if streams else BEGUN

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
