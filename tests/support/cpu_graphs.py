"""CUDA graphs without a GPU: a tape of what a call does on the CPU, played again with every argument as it was.

A replay runs no Python of the call: the same operators read and write the same memory. So what comes out of one
depends on what is in that memory now, and on nothing else; where a forward had anything of a batch in Python, its
replay for the next batch is wrong. What a capture on a GPU does not allow, reading values or copying them from the
host, is an error.
"""

from __future__ import annotations

import ctypes
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparsehub.engine.generation import decode_graphs, decoding_check
from sparsehub.kernels import native
from tests.support.fake_streams import EMPTY, WAITING, tensors_in

HOST = {*WAITING, "aten::lift_fresh", "aten::is_nonzero", "aten::item"}  # with which the host reads or sends values
ALLOCATE = {*EMPTY, "aten::empty", "aten::empty_strided"}
TABLE, MAPS, FIELDS = 5, 6, 4  # of the arguments of `sparse_linear`: the address of its maps, how many, numbers of each


class CaptureError(AssertionError):
    """A capture did what a GPU would not allow."""


class CpuGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self._tape: list[Callable[[], None]] = []
        self._alive: list[Any] = []  # memory that the tape's launches use
        self.replays = 0

    def __len__(self) -> int:
        return len(self._tape)

    def record(self, call: Callable[[], None], *alive: Any) -> None:
        """Add a launch, and what it needs."""
        self._tape.append(call)
        self._alive += alive

    def keep(self, tensors: Iterator[Tensor]) -> None:
        """Do not free memory that later launches use."""
        self._alive += tensors

    def replay(self) -> None:
        """Run everything again."""
        assert self._tape, "it was reset"
        self.replays += 1
        for call in self._tape:
            call()

    def reset(self) -> None:
        """Free it."""
        del self._tape[:], self._alive[:]


class _Operators(TorchDispatchMode):
    """Inside, every operator of torch is recorded."""

    def __init__(self, graph: CpuGraph):
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named, name = dict(kwargs or {}), func._schema.name
        if name in HOST:
            raise CaptureError(f"{name} while a graph is captured")
        result = func(*args, **named)
        self._graph.keep(tensors_in(result))
        if name not in ALLOCATE:
            self._record(func, args, named, result)
        return result

    def _record(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors_in([*args, *kwargs.values()])}
        fresh = [tensor.untyped_storage().data_ptr() not in given for tensor in tensors_in(result)]

        def again() -> None:
            for is_fresh, old, new in zip(fresh, tensors_in(result), tensors_in(func(*args, **kwargs)), strict=True):
                assert old.shape == new.shape
                if is_fresh:
                    old.copy_(new)

        if func._schema.is_mutable or any(fresh):  # else it gave what it got
            self._graph.record(again)


class _Kernels:
    """Stands for the compiled module: every call is recorded, with the numbers and addresses that it got."""

    def __init__(self, module: Any, graph: CpuGraph):
        self._module, self._graph = module, graph

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def call(*arguments: Any) -> Any:
            frozen = list(arguments)
            if name == "sparse_linear":  # the list of its maps is in Python's memory: a launch would take it along
                size = arguments[MAPS] * FIELDS
                kept = array("q", (ctypes.c_int64 * size).from_address(arguments[TABLE]))
                frozen[TABLE] = kept.buffer_info()[0]
                self._graph.record(lambda: function(*frozen), kept)
            else:
                self._graph.record(lambda: function(*frozen))
            return function(*arguments)

        return call


def _not_by(thread: int, read: Callable[..., Any]) -> Callable[..., Any]:
    """A way to read a tensor that one thread, which captures, has not; others load tasks meanwhile."""

    def reading(*arguments: Any, **named: Any) -> Any:
        if threading.get_ident() == thread:
            raise CaptureError("the host reads a tensor while a graph is captured")
        return read(*arguments, **named)

    return reading


@contextmanager
def cpu_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[CpuGraph]]:
    """Inside, engines on the CPU capture their decode steps where `compile_mode` is not `off`; the graphs so far."""
    made: list[CpuGraph] = []

    @contextmanager
    def capture(device: torch.device, pool: Any) -> Iterator[decode_graphs.Capture]:
        graph, module, thread = CpuGraph(), native.module_of_kernels(), threading.get_ident()
        recorded = _Kernels(module, graph)
        with pytest.MonkeyPatch.context() as patch, _Operators(graph):
            own = lambda: recorded if threading.get_ident() == thread else module  # noqa: E731
            patch.setattr(native, "module_of_kernels", own)
            for name in ("tolist", "numpy"):
                patch.setattr(Tensor, name, _not_by(thread, getattr(Tensor, name)))
            yield decode_graphs.Capture(graph, 1)
        made.append(graph)

    monkeypatch.setattr(decode_graphs, "capture", capture)
    monkeypatch.setattr(decoding_check, "can_capture", lambda _: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a pool")
    yield made
