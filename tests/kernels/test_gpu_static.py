"""The GPU kernels without a GPU: the list of launches is whole, and they compile for every architecture."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from sparsehub.kernels import ScaleShift, changes_of, segments_of
from tests.kernels.test_sparse import random_change

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
WIDE = 70_000  # columns that two bytes cannot number
Launched = set[tuple[str, str, str, frozenset[tuple[str, Any]]]]


@pytest.fixture
def static() -> ModuleType:
    pytest.importorskip("triton")
    return importlib.import_module("benchmarks.engine.gpu_static")


@pytest.fixture
def launched(static: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Launched:
    """The launches that were asked for instead of made: kernel, dtype, dtype of positions, constants."""
    found: Launched = set()
    for name in static.TENSORS:

        class Recorder:
            def __init__(self, name: str):
                self.name = name

            def __getitem__(self, grid: object) -> Callable[..., None]:
                return lambda *arguments, **constants: self.add(arguments, constants)

            def add(self, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
                tensor = arguments[1] if self.name == "_sparse_lookup" else arguments[0]
                positions = ""
                if "BLOCK" in constants:
                    positions = {torch.int32: "i32", torch.int64: "i64"}[arguments[1].dtype]
                found.add((self.name, DTYPES[tensor.dtype], positions, frozenset(constants.items())))

        monkeypatch.setattr(static.triton_ops, name, Recorder(name))
    return found


def test_every_launch_is_in_the_list_and_nothing_else(static: ModuleType, launched: Launched) -> None:
    ops = static.triton_ops
    for dtype in DTYPES:
        for positions in (torch.int32, torch.int64):
            arena, places = torch.zeros(9, dtype=dtype), torch.arange(3, dtype=positions)
            ops.gather(arena, places)
            ops.scatter_copy_(arena, places, torch.ones(3, dtype=dtype))
            ops.scatter_add_(arena, places, torch.ones(3))
        for inside in (16, WIDE):
            changes = changes_of([random_change(inside, 3, 0.01, 1)])
            for tokens in (*range(1, 34), 100):
                segments = segments_of([(0, 0, tokens)])
                x, y = torch.zeros(tokens, inside, dtype=dtype), torch.zeros(tokens, 3, dtype=dtype)
                ops.sparse_linear_(y, x, segments, changes)
            lookup = changes_of([random_change(inside, 3, 0.01, 2)])
            y, ids = torch.zeros(1, inside, dtype=dtype), torch.zeros(1, dtype=torch.int64)
            ops.sparse_lookup_(y, ids, segments_of([(0, 0, 1)]), lookup)
        scales = changes_of([ScaleShift(torch.ones(5))])
        ops.scale_shift_(torch.zeros(2, 5, dtype=dtype), segments_of([(0, 0, 2)]), scales)
    listed = {(it.kernel, it.dtype, it.positions, frozenset(it.constants)) for it in static.launches()}
    assert launched == listed


@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.soak(only=True))])
def test_the_kernels_compile_for_every_architecture(static: ModuleType, which: str) -> None:
    """The widest of each kernel, or all; in a process of its own, since here they run in the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.engine.gpu_static", "--check", which]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    launches = static.few() if which == "few" else list(static.launches())
    expected = len(launches) * len(static.ARCHITECTURES)
    assert done.stdout.startswith(f"{expected} kernels were compiled")
