"""What an endpoint leans on, gone wrong: a line to a hub that hangs or lies, a disk that is full."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PASS, HANG, GARBAGE, FLIPPED, CUT = "pass", "hang", "garbage", "flipped", "cut"
FAULTS = (HANG, GARBAGE, FLIPPED, CUT)
CHUNK = 1 << 16


class Proxy:
    """A line to a server, in threads. mode: what becomes of the server's answers, old connections' too.

    hang: nothing comes until the mode changes; garbage: other bytes; flipped: answers of wrong content; cut:
    the connection ends in the middle.
    """

    def __init__(self, address: str):
        self.mode = PASS
        url = urlsplit(address)
        self._upstream = (url.hostname or "", url.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that hang go on."""
        self.mode = PASS
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._upstream)
                for source, sink, spoilt in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._carry, args=(source, sink, spoilt), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, spoilt: bool) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                while spoilt and self.mode == HANG:
                    time.sleep(0.02)
                sink.sendall(self._spoil(data) if spoilt else data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _spoil(self, data: bytes) -> bytes:
        mode = self.mode
        if mode == GARBAGE:
            return os.urandom(len(data))
        if mode == FLIPPED and not data.endswith(b"\r\n\r\n"):  # not a head: its answer stays well-formed
            return data[:-1] + bytes([data[-1] ^ 1])
        if mode == CUT:
            raise ConnectionAbortedError("in the middle")
        return data


class Disk:
    """A small disk. `full`: a block in which nothing can be written to it."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def full(self) -> Iterator[None]:
        ballast = self.folder / "ballast"
        try:
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(CHUNK))
            yield
        finally:
            ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Disk | None]:
    """A disk of this size at `folder`; None where this process may not mount one."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def flipped_bit(engine: Any, choices: random.Random) -> Iterator[Callable[[], bool]]:
    """Inside, a bit of the backbone's weights is flipped; what is given says whether it is right again."""
    import torch

    (buffer,) = engine.backbone.arena.buffers.values()
    words = buffer.detach().reshape(-1).view(torch.int32)
    with engine.arena.lock:
        engine.arena.swap.to(None)  # or a switch could write over it before it is seen
        entry = choices.randrange(words.numel())
        before = int(words[entry])
        words[entry] ^= 1 << choices.choice((20, 23, 29))

    def right() -> bool:
        with engine.arena.lock:
            engine.arena.swap.to(None)  # a task may change this very entry, and have restored it with its own
            return int(words[entry]) == before

    yield right
