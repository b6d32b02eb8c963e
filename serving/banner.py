"""The banner: what an endpoint that has started says to whoever started it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping

from serving.request.service import Service
from sparsehub.engine import TaskInfo
from sparsehub.errors import SparsehubError
from sparsehub.package.usage import example_request

SHOWN_TASKS = 8
LOAD_SECONDS = 5.0  # that the task of the example may take to load
ADDRESSES = "BENTOML_RUNNER_MAP"  # BentoML's variable: the addresses of a process manager's services, by name


def show_banner(service: Service, environment: Mapping[str, str]) -> None:
    """Write the banner to standard error: where the endpoint is, what it serves, and a request that works."""
    url = json.loads(environment.get(ADDRESSES, "{}")).get("sparsehub", "http://localhost:3000")
    for line in _lines(service, url):
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _lines(service: Service, url: str) -> Iterator[str]:
    settings, backbone = service.settings, service.engine.backbone
    dtype = str(backbone.dtype).removeprefix("torch.")
    yield f"\nready: {url}"
    yield f"  backbone  {settings.backbone} on {backbone.device}, {dtype}"
    yield f"  tasks     {_tasks(service)}"
    if settings.console:
        yield f"  console   {url}/console/"
    yield f"  API       {url}/docs"
    yield f"  try       {_curl(service, url)}\n"


def _tasks(service: Service) -> str:
    names = sorted({task.name for task in service.engine.tasks.all()})
    more = len(names) - SHOWN_TASKS
    shown = ", ".join(names[:SHOWN_TASKS]) + (f" and {more} more" if more > 0 else "")
    return shown or "none: the backbone alone"


def _curl(service: Service, url: str) -> str:
    key = ["-H", '"Authorization: Bearer $KEY"'] if service.settings.keys else []
    route, body = _example(service)
    header = "'content-type: application/json'"
    return " ".join(["curl", f"{url}/v1/{route}", *key, "-H", header, "-d", shlex.quote(body)])


def _example(service: Service) -> tuple[str, str]:
    """The route below /v1 and the body of a request that is answered."""
    info = _some_task(service)
    if info is not None:
        return example_request(info.name, info.spec)
    if service.engine.generator is not None:
        return "completions", json.dumps({"model": "backbone", "prompt": "...", "max_tokens": 16})
    return "embeddings", json.dumps({"model": "backbone", "input": ["..."]})


def _some_task(service: Service) -> TaskInfo | None:
    """A task that can be asked now; None where there is none, or where its package cannot be had."""
    tasks = sorted(service.engine.tasks.all(), key=lambda task: task.name)
    try:
        return service.engine.info(tasks[0].name, LOAD_SECONDS) if tasks else None
    except SparsehubError:
        return None
