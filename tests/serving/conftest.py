"""The app on a real socket, around an engine with tiny tasks."""

from __future__ import annotations

import functools
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

from serving.app import behind_middleware, create_app
from serving.auth import Authenticator
from serving.catalog.reconciler import Reconciler
from serving.catalog.router import Router
from serving.request.metrics import Metrics
from serving.request.service import Service
from serving.settings import Settings
from serving.startup import start_catalog
from sparsehub.backbone import load_backbone
from sparsehub.engine import Budgets, Engine, Limits
from sparsehub.package import read_package


@dataclass
class Server:
    """An app that listens, the engine behind it, and a client of it."""

    engine: Engine
    port: int
    client: httpx.Client
    metrics: Metrics = field(repr=False, default_factory=Metrics)
    reconciler: Reconciler | None = None
    gate: Any = field(repr=False, default=None)
    access: Authenticator = field(default_factory=Authenticator)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that another thread does has happened."""
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "it never happened"
            time.sleep(0.005)


@contextmanager
def listening(
    engine: Engine, settings: Settings, metrics: Metrics, access: Authenticator | None = None
) -> Iterator[Server]:
    app, router, access = create_app(), Router(), access or Authenticator()
    reconciler = start_catalog(settings, engine, router)
    app.state.service = Service(settings, engine, metrics, access, router, reconciler)
    if settings.console:
        from serving.console.mount import add_console

        add_console(app, app.state.service)
    gate = behind_middleware(app)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(
            behind_middleware(app),
            http="httptools",  # not what `serving.service` makes the default where another test has imported it
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield Server(engine, port, client, metrics, reconciler, gate, access)
    finally:
        if reconciler is not None:
            reconciler.stop()
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="session")
def new_server(tiny_tasks: Any, suite: Mapping[str, Path]) -> Callable[..., Any]:
    @contextmanager
    def new(
        start: bool,
        limits: Limits | None = None,
        access: Authenticator | None = None,
        budgets: Budgets | None = None,
        **settings: Any,
    ) -> Iterator[Server]:
        metrics = Metrics()
        engine = Engine(load_backbone(str(tiny_tasks.folder)), limits, metrics, budgets=budgets)
        for package in () if "catalog" in settings else suite.values():
            engine.add(read_package(package))
        if start:
            engine.start()
        with listening(
            engine, Settings(**{"backbone": "tiny/bert", "hub": "hub", **settings}), metrics, access
        ) as server:
            yield server
        engine.stop(drain=5)

    return new


@pytest.fixture(scope="module")
def server(new_server: Callable[..., Any]) -> Iterator[Server]:
    """Serves one task of every kind; its model thread runs."""
    with new_server(start=True) as server:
        yield server


@pytest.fixture
def halted(new_server: Callable[..., Any]) -> Iterator[Callable[..., Server]]:
    """halted(limits): a server whose batches run only when the test calls `engine.step()`."""
    with ExitStack() as stack:
        yield lambda limits=None: stack.enter_context(new_server(False, limits))


@pytest.fixture(scope="session")
def reference_of(tiny_tasks: Any, suite: Mapping[str, Path]) -> Callable[[str], Callable[[Any], list[float]]]:
    """By a task's name, what plain transformers answers to an input."""
    return functools.cache(lambda name: tiny_tasks.reference(suite[name]))


@pytest.fixture(scope="module")
def new_language_server(speakers: Any) -> Callable[..., Any]:
    """new_language_server(access, setting=...): serves the small language model with two ways to speak."""

    @contextmanager
    def new(access: Authenticator | None = None, **settings: Any) -> Iterator[Server]:
        metrics = Metrics()
        engine = Engine(load_backbone(str(speakers.folder)), None, metrics)
        for seed, name in enumerate(("gruff", "meek")):
            engine.add(read_package(speakers.write(name, "text-generation", seed=seed, scale=0.3)))
        engine.start()
        with listening(engine, Settings("tiny/lm", hub="hub", **settings), metrics, access) as server:
            yield server
        engine.stop(drain=5)

    return new


@pytest.fixture(scope="module")
def language_server(new_language_server: Callable[..., Any]) -> Iterator[Server]:
    """It asks nobody for a key."""
    with new_language_server() as server:
        yield server
