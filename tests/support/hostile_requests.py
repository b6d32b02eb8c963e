"""Requests that are to hold an endpoint up, break it, or fill it: each must be refused, cheaply."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

CLASSIFY, EMBED, RERANK, INFER = "/v1/classify", "/v1/embeddings", "/v1/rerank", "/v2/models/first/infer"
PATHS = (CLASSIFY, EMBED, RERANK, INFER, "/v1/completions", "/v1/chat/completions", "/v1/score")
LARGE = 2_000_000  # bytes
Choices = random.Random


def text(choices: Choices) -> bytes:
    """Far more characters than a request may have."""
    return json.dumps({"model": "first", "input": choices.choice(".a \u00e9{") * LARGE}).encode()


def integers(choices: Choices) -> bytes:
    """A list of the wrong type."""
    name = choices.choice(("input", "prompt", "messages", "documents", "stop"))
    return b'{"model": "first", "%b": [%b1]}' % (name.encode(), b"1," * choices.randint(1, 900_000))


def fields(choices: Choices) -> bytes:
    """An object of many unknown fields."""
    return json.dumps({f"field{i}": i for i in range(choices.randint(200, 90_000))}).encode()


def nested(choices: Choices) -> bytes:
    """Lists or objects in one another, or beside one another."""
    depth = choices.randint(2_000, 200_000)
    deep = choices.choice((b"[", b'{"a":')) * depth
    return choices.choice((b'{"input": ' + deep, b'{"input": [' + b"[]," * depth + b"[]]}"))


def cut_off(choices: Choices) -> bytes:
    """JSON that ends in the middle, or in something else."""
    whole = json.dumps({"model": "first", "input": ["the fox"] * choices.randint(1, 20_000)}).encode()
    return whole[: choices.randrange(1, len(whole))] + choices.randbytes(choices.randint(0, 20)) + b"{"


def noise(choices: Choices) -> bytes:
    """No JSON at all."""
    return b"\xff" + choices.randbytes(choices.randint(0, LARGE))


BODIES: tuple[Callable[[Choices], bytes], ...] = (text, integers, fields, nested, cut_off, noise)


def attack(port: int, choices: Choices) -> int:
    """Send one of them; the status of its answer, 400 where the endpoint hangs up instead of answering."""
    body, path = choices.choice(BODIES)(choices), choices.choice(PATHS)
    headers = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body))}
    if choices.random() < 0.1:
        headers["X-Large"] = "a" * choices.randint(1_000, 300_000)
    return status_of(port, path, headers, body)


def status_of(port: int, path: str, headers: Mapping[str, str], body: bytes) -> int:
    """The status that a request gets on a connection of its own."""
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with suppress(OSError):
            connection.sendall(head.encode() + b"\r\n" + body)
        try:
            return int(connection.recv(1 << 16).split()[1])
        except (ConnectionError, IndexError):
            return 400
