"""The way of one request: how many files it leads through, and how often it leaves the event loop."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import sparsehub

ROOT = Path(sparsehub.__file__).parents[1]
OURS = (f"{ROOT}/serving/", f"{ROOT}/sparsehub/")
MOST_FILES, MOST_HOPS = 22, 1


class Tracer:
    """Notes our files by the thread that calls into them, and what is handed to worker threads, while `on` is set."""

    def __init__(self) -> None:
        self.on = False
        self.files: dict[str, set[str]] = defaultdict(set)
        self.hops = 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        thread = threading.current_thread().name
        if not self.on or thread == "sparsehub-model":  # it runs batches, which are of many requests
            return
        if event == "c_call" and thread.startswith("AnyIO") and arg.__name__ == "run":
            self.hops += 1
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(OURS):
            self.files[thread].add(path.removeprefix(f"{ROOT}/"))


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    """It sees the threads that start while the fixture lives."""
    found = Tracer()
    threading.setprofile(found)
    yield found
    threading.setprofile(None)  # type: ignore[arg-type]
    sys.setprofile(None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", {"model": "three", "input": ["the fox", "a dog"]}),
        ("/v1/score", {"model": "rating", "input": "the fox"}),
        ("/v1/embeddings", {"model": "three", "input": "the fox"}),
        ("/v2/models/three/infer", {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}),
    ],
)
def test_a_request_takes_one_hop_through_few_files(
    tracer: Tracer, new_server: Callable[..., Any], path: str, body: dict[str, Any]
) -> None:
    with new_server(start=True) as server:
        assert server.client.post(path, json=body).status_code == 200  # what is made once is made now
        tracer.on = True
        response = server.client.post(path, json=body)
        server.until(lambda: "serving/request/logs.py" in set().union(*tracer.files.values()))  # the last step
        tracer.on = False
    assert response.status_code == 200
    assert tracer.hops == MOST_HOPS
    visited = sorted(set().union(*tracer.files.values()))
    assert "serving/request/service.py" in visited and "sparsehub/engine/scheduler.py" in visited
    assert len(visited) <= MOST_FILES, "\n".join(visited)
