"""The app on a real socket, around an engine with tiny tasks."""

from __future__ import annotations

import functools
import runpy
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from serving.app import Service, create_app
from serving.metrics import Metrics
from serving.settings import Settings
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, Limits
from sparsehub.package import read_package

_shared = runpy.run_path(str(Path(__file__).parents[1] / "engine" / "conftest.py"))
tiny_tasks, suite, close = (_shared[name] for name in ("tiny_tasks", "suite", "close"))


@dataclass
class Server:
    """An app that listens, the engine behind it, and a client of it."""

    engine: Engine
    port: int
    client: httpx.Client
    metrics: Metrics = field(repr=False, default_factory=Metrics)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that another thread does has happened."""
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "it never happened"
            time.sleep(0.005)


@contextmanager
def _listening(engine: Engine, settings: Settings, metrics: Metrics) -> Iterator[Server]:
    app = create_app()
    app.state.service = Service(settings, engine, metrics)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield Server(engine, port, client, metrics)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="session")
def _new_server(tiny_tasks: Any, suite: Mapping[str, Path]) -> Callable[..., Any]:
    @contextmanager
    def new(start: bool, limits: Limits | None = None) -> Iterator[Server]:
        metrics = Metrics()
        engine = Engine(load_backbone(str(tiny_tasks.folder)), limits, metrics.observe)
        for package in suite.values():
            engine.add(read_package(package))
        if start:
            engine.start()
        settings = Settings(backbone="tiny/bert", hub="hub")
        with _listening(engine, settings, metrics) as server:
            yield server
        engine.stop(drain=5)

    return new


@pytest.fixture(scope="module")
def server(_new_server: Callable[..., Any]) -> Iterator[Server]:
    """Serves one task of every kind; its model thread runs."""
    with _new_server(start=True) as server:
        yield server


@pytest.fixture
def halted(_new_server: Callable[..., Any]) -> Iterator[Callable[..., Server]]:
    """halted(limits): a server whose batches run only when the test calls `engine.step()`."""
    with ExitStack() as stack:
        yield lambda limits=None: stack.enter_context(_new_server(False, limits))


@pytest.fixture(scope="session")
def reference_of(tiny_tasks: Any, suite: Mapping[str, Path]) -> Callable[[str], Callable[[Any], list[float]]]:
    """By a task's name, what plain transformers answers to an input."""
    return functools.cache(lambda name: tiny_tasks.reference(suite[name]))


speakers, says = (_shared[name] for name in ("speakers", "says"))


@pytest.fixture(scope="module")
def language_server(speakers: Any) -> Iterator[Server]:
    """Serves the small language model with two ways to speak."""
    metrics = Metrics()
    engine = Engine(load_backbone(str(speakers.folder)), None, metrics.observe)
    for seed, name in enumerate(("gruff", "meek")):
        engine.add(read_package(speakers.write(name, "text-generation", seed=seed, scale=0.3)))
    engine.start()
    with _listening(engine, Settings(backbone="tiny/lm", hub="hub"), metrics) as server:
        yield server
    engine.stop(drain=5)
