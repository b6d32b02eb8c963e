"""What the process manager says to the clients of a worker that is gone. Here its sockets end; `test_life.py` kills
real ones."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.connection_guard import BEGUN, IDLE, ConnectionGuard, GuardedTransport
from serving.guardian import Guardian
from serving.settings import STARTS
from serving.supervision import connection_guard

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
EVENT = b"b\r\ndata: one\n\n\r\n"
REFUSED, ENDED = b"HTTP/1.1 503 ", b"\n\n\r\n0\r\n\r\n"


class SocketTransport(asyncio.Transport):
    """A transport that keeps what a client does not take, as an event loop's does."""

    def __init__(self, connection: socket.socket):
        super().__init__({"socket": connection})
        connection.setblocking(False)
        self.connection, self.kept = connection, b""

    def write(self, data: Any) -> None:
        try:
            sent = 0 if self.kept else self.connection.send(data)
        except BlockingIOError:
            sent = 0
        self.kept += bytes(data)[sent:]

    def get_write_buffer_size(self) -> int:
        return len(self.kept)


class Worker:
    """A worker with connections. `die`: what the kernel does with a killed one."""

    def __init__(self, folder: Path, connections: int = 4):
        self.guard = ConnectionGuard(folder, connections)
        self.ends: list[socket.socket] = []

    def connection(self) -> tuple[socket.socket, GuardedTransport, SocketTransport]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), timeout=20)
            accepted, _ = listener.accept()
        self.ends.append(accepted)
        transport = SocketTransport(accepted)
        guarded = self.guard.guarded(transport)
        assert guarded is not None
        return client, guarded, transport

    def die(self) -> None:
        for end in (*self.ends, self.guard._manager):
            end.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    Guardian(tmp_path)
    worker = Worker(tmp_path)
    yield worker
    worker.die()


def heard(client: socket.socket) -> bytes:
    """What comes until the connection ends, by its end or by a reset."""
    with client:
        try:
            return b"".join(iter(lambda: client.recv(1 << 20), b""))
        except ConnectionResetError:
            return b""


def test_each_connection_ends_as_far_as_it_is(worker: Worker) -> None:
    idle, _, _ = worker.connection()
    waiting, request, _ = worker.connection()
    request.request_begins()
    streaming, stream, _ = worker.connection()
    stream.request_begins()
    for data in (HEAD, EVENT, EVENT):
        stream.write(data)
    begun, answer, _ = worker.connection()
    answer.request_begins()
    answer.write(JSON_HEAD)
    worker.die()
    assert heard(idle) == b"" and heard(begun) == JSON_HEAD
    refused, streamed = heard(waiting), heard(streaming)
    assert refused.startswith(REFUSED) and b'"type": "server_error"' in refused and b"retry-after: 5" in refused
    assert streamed.startswith(HEAD + EVENT + EVENT) and streamed.endswith(ENDED)
    assert streamed.count(b'data: {"error"') == 1


def test_after_an_answer_the_connection_waits_for_the_next_request(worker: Worker) -> None:
    answered, first, _ = worker.connection()
    again, second, _ = worker.connection()
    unread, third, _ = worker.connection()
    for transport in (first, second, third):
        transport.request_begins()
        transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        transport.write(JSON_HEAD)
        transport.write(b" " * 100)
        transport.turn(IDLE)
    second.request_begins()
    unread.sendall(b"GET / HTTP/1.1\r\n\r\n")
    worker.die()
    assert heard(answered).endswith(b" " * 100)
    assert REFUSED in heard(again) and REFUSED in heard(unread)


def test_what_was_written_and_not_sent_does_not_count(worker: Worker) -> None:
    """A client that reads nothing: the kernel has a part of an event, after which no other can follow."""
    slow, stream, transport = worker.connection()
    large = b"%x\r\n%b\r\n" % (1 << 20, b"a" * (1 << 20))
    stream.request_begins()
    stream.write(HEAD)
    while not transport.kept:
        stream.write(large)
    written, request, kept = worker.connection()
    request.request_begins()
    kept.kept = b"what is before it"  # the loop has handed on nothing of this answer
    request.write(JSON_HEAD)
    worker.die()
    assert ENDED not in heard(slow) and heard(written).startswith(REFUSED)


def test_a_client_that_still_sends_reads_its_error(worker: Worker) -> None:
    sending, request, _ = worker.connection()
    request.request_begins()
    sending.sendall(b"a" * 100_000)
    worker.die()
    assert heard(sending).startswith(REFUSED)


def test_a_connection_that_closes_is_closed_for_its_client(worker: Worker, tmp_path: Path) -> None:
    files = len(os.listdir("/proc/self/fd")) + 5  # what the guardian opens for itself as it hears of the worker
    for _ in range(20):  # more than there are slots
        client, transport, _ = worker.connection()
        transport.request_begins()
        transport.release()
        worker.ends.pop().close()
        assert heard(client) == b""
    end = time.monotonic() + 20
    while len(os.listdir("/proc/self/fd")) > files:  # the guardian drops the duplicates when it hears of them
        assert time.monotonic() < end
        time.sleep(0.01)


def test_more_connections_than_slots_and_encrypted_ones_are_as_they_are(worker: Worker) -> None:
    encrypted = SocketTransport(socket.socket())
    encrypted._extra["sslcontext"] = object()  # type: ignore[attr-defined]
    assert worker.guard.guarded(encrypted) is None
    clients = [worker.connection() for _ in range(4)]
    assert worker.guard.guarded(SocketTransport(socket.socket())) is None
    clients[0][1].turn(BEGUN)


def test_a_worker_that_nobody_guards_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "sparsehub"):
        monkeypatch.delenv(STARTS, raising=False)
        assert connection_guard(4) is None
        monkeypatch.setenv(STARTS, str(tmp_path))
        assert connection_guard(4) is None
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "if this worker is killed, its clients see closed connections in place of errors"
    ] * 2


def test_a_manager_that_is_gone_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "guard"))
        listener.listen()
        worker = Worker(tmp_path)
        listener.accept()[0].close()
    with caplog.at_level(logging.WARNING, "sparsehub"):
        client, transport, _ = worker.connection()
        transport.release()
        assert heard(client) == b""
        assert worker.guard.guarded(SocketTransport(socket.socket())) is None
    assert len(caplog.records) == 1
    worker.die()


def test_the_folder_may_have_a_longer_name_than_an_address_has_room_for(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    Guardian(folder)
    worker = Worker(folder)
    client, guarded, _ = worker.connection()
    guarded.request_begins()
    worker.die()
    assert client.recv(4096).startswith(REFUSED)
