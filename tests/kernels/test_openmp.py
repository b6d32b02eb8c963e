"""Whose threads kernels run on: only a model thread keeps some."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine
from sparsehub.kernels.openmp import _pause, release_threads
from tests.support.tiny_tasks import TinyTasks

TASKS = Path("/proc/self/task")  # Linux: a folder for each thread of this process
pytestmark = pytest.mark.skipif(not TASKS.is_dir() or _pause() is None, reason="needs Linux, and torch with OpenMP 5")


@pytest.fixture
def parallel() -> Iterator[Callable[[], None]]:
    """parallel(): a kernel that runs on three threads, of which the test's own is one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    numbers = torch.ones(1 << 20)
    release_threads()
    yield lambda: numbers.add_(1)  # type: ignore[misc]
    release_threads()
    torch.set_num_threads(threads)


def settled() -> int:
    """How many threads the process has, once those that end are gone."""
    counts = [-1, len(list(TASKS.iterdir()))]
    while counts[-1] != counts[-2]:
        time.sleep(0.3)
        counts.append(len(list(TASKS.iterdir())))
    return counts[-1]


def wait_for(count: int) -> None:
    """Until the process has so many threads: those that end need a moment."""
    end = time.monotonic() + 30
    while (found := len(list(TASKS.iterdir()))) != count:
        assert time.monotonic() < end, f"{found} threads, expected {count}"
        time.sleep(0.01)


def test_threads_are_given_back_and_come_again(parallel: Callable[[], None]) -> None:
    before = settled()
    for _ in range(3):
        parallel()
        wait_for(before + 2)
        release_threads()
        wait_for(before)
    assert torch.get_num_threads() == 3


def test_whoever_starts_an_engine_keeps_none_beside_the_model_thread(
    parallel: Callable[[], None], tiny_tasks: TinyTasks
) -> None:
    engine = Engine(load_backbone(tiny_tasks.folder), compile_mode="off")
    parallel()
    before = settled()
    with engine:
        wait_for(before - 2 + 1)
