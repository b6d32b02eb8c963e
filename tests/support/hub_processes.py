"""Processes that publish and pull at once, or are killed while they do. Run as a program: it forks, so that nothing is
imported more than once, and prints one JSON line a child.

    hub_processes.py race LOCATION PACKAGE ...           one child a package, all released at the same moment
    hub_processes.py push LOCATION PACKAGE KILLS SEED    each child publishes a version of its own and is killed
    hub_processes.py pull LOCATION REFERENCE KILLS SEED  each child pulls into a cache of its own and is killed
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy  # noqa: F401 - everything heavy before the first fork
import obstore  # noqa: F401

import sparsehub.hub.folder_blob_store
import sparsehub.hub.huggingface_backend
import sparsehub.hub.package_loader  # noqa: F401
from sparsehub.errors import SparsehubError
from sparsehub.hub import open_hub
from sparsehub.package import validate_package  # noqa: F401


def forked(action: Callable[[], Any]) -> tuple[int, int]:
    """A child that runs `action` and writes what it gives, or the error, to a pipe: its id and the pipe's end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        outcome = {"done": action()}
    except SparsehubError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    except BaseException as error:
        outcome = {"error": "unexpected", "message": repr(error)}
    os.write(writer, json.dumps(outcome).encode())
    os._exit(0)


def race(location: str, packages: list[str]) -> None:
    gate, opener = os.pipe()

    def publish(package: str) -> Callable[[], str]:
        def run() -> str:
            os.close(opener)
            os.read(gate, 1)  # returns when the last holder of `opener` has closed it
            return open_hub(location).publish(Path(package)).digest

        return run

    children = [forked(publish(package)) for package in packages]
    time.sleep(0.2)
    os.close(opener)
    for _, reader in children:
        with os.fdopen(reader) as pipe:
            print(pipe.read(), flush=True)


def killed(action: Callable[[int], Any], kills: int, seed: int) -> None:
    """Run action(0) in full, then action(1), action(2) ...: each is killed somewhere within the time of a whole one.

    Goes on until `kills` of them were killed before they were done, whatever the machine does meanwhile.
    """
    moments, number, left, whole = random.Random(seed), 0, kills, 0.0
    while left and number < 20 * kills:
        start = time.monotonic()
        child, reader = forked(lambda number=number: action(number))
        if number:
            time.sleep(moments.uniform(0, whole))
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        print(json.dumps({"number": number, **(json.loads(said) if said else {"killed": True})}), flush=True)
        whole = time.monotonic() - start if not number else whole * (0.9 if said else 1)  # the first one is the slowest
        number, left = number + 1, left - (not said)


def push(location: str, package: str, kills: int, seed: int) -> None:
    def publish(number: int) -> str:
        return open_hub(location).publish(Path(package), version=f"1.0.{number}").digest

    killed(publish, kills, seed)


def pull(location: str, reference: str, kills: int, seed: int) -> None:
    from sparsehub.hub.package_loader import pull as fetch

    def run(number: int) -> str:
        os.environ["SPARSEHUB_CACHE"] = str(Path(os.environ["CACHES"]) / str(number))
        return str(fetch(reference, open_hub(location)).folder)

    killed(run, kills, seed)


if __name__ == "__main__":
    verb, location, *rest = sys.argv[1:]
    if verb == "race":
        race(location, rest)
    else:
        {"push": push, "pull": pull}[verb](location, rest[0], int(rest[1]), int(rest[2]))
