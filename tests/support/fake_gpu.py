"""A GPU that is not there: tensors that have a device, a shape and a dtype but no memory, on a machine without a GPU.

Two devices in one operation are an error, as they would be on the GPU (`FakeTensorDeviceMismatchError`), and so are two
streams that do not wait for each other (`fake_streams.py`); a Triton kernel is not launched, but its tensors are looked
at.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from sparsehub.engine import checksum, residency
from sparsehub.package import heads
from tests.support.fake_streams import GPU, PINNED, Streams, WatchedOperators

CUDA, META = 1, 14  # of `c10::DeviceType`
# The Triton kernels, and which of its arguments each of them writes.
KERNELS = {"_gather": 2, "_scatter_copy": 0, "_scatter_add": 0, "_scale_shift": 0}
KERNELS |= {"_sparse_linear": 1, "_sparse_prefill": 1, "_sparse_lookup": 1}
aten = torch.ops.aten


@dataclass(frozen=True)
class FakeGpu:
    """The GPU that is not there, inside `fake_gpu`."""

    mode: FakeTensorMode
    launched: list[str] = field(default_factory=list)  # kernels
    streams: Streams = field(default_factory=Streams)
    generators: list[Any] = field(default_factory=list)  # of random numbers, on it

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, this thread's tensors may be on the GPU."""
        with self.mode, WatchedOperators(self.streams, self.generators):
            yield

    def threads(self, count: int, thread_name_prefix: str = "") -> ThreadPoolExecutor:
        """Stands for `ThreadPoolExecutor`: threads whose tensors may be on the GPU."""
        return _Threads(self, count, thread_name_prefix)

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Stands for `torch.Generator`."""
        made = _Generator()
        if torch.device(device).type == "cuda":
            self.generators.append(made)
        return made


_Generator = torch.Generator


class _Threads(ThreadPoolExecutor):
    def __init__(self, gpu: FakeGpu, count: int, prefix: str):
        super().__init__(count, prefix)
        self._gpu = gpu

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        def run() -> Any:
            with self._gpu.on():
                return function(*arguments, **named)

        return super().submit(run)


@contextmanager
def device_guard() -> Iterator[None]:
    """Inside, operators that change to a tensor's device first find that of "meta" tensors, which changes nothing: a
    build of torch without CUDA has none."""
    path = Path(torch.__file__).with_name("lib") / "libc10.so"
    if not path.is_file():
        pytest.skip("torch's device guards are not where a build for Linux has them")
    library = ctypes.CDLL(str(path))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[CUDA] = guards[CUDA], guards[META]
    try:
        yield
    finally:
        guards[CUDA] = before


class Launch:
    """Stands for a Triton kernel: looks at the tensors that it would get."""

    def __init__(self, name: str, gpu: FakeGpu):
        self._name, self._gpu = name, gpu

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid), (self._name, grid)
        return self._launch

    def _launch(self, *arguments: Any, **constants: Any) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        assert all(tensor.device == GPU for tensor in tensors), (self._name, [tensor.device for tensor in tensors])
        assert all(tensor.is_contiguous() for tensor in tensors), self._name
        assert self._gpu.streams.device == GPU, self._name  # Triton launches on the current device
        self._gpu.streams.work(self._name, tensors, [arguments[KERNELS[self._name]]])
        self._gpu.launched.append(self._name)


def _real(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run without a fake GPU."""

    def run(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments)

    return run


def _without_values(tensor: Callable[..., Tensor], streams: Streams) -> Callable[..., Tensor]:
    """`torch.tensor`: a single value would be kept beside the fake tensor, and really moved to the GPU."""

    def make(data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        there = torch.empty(0).device if device is None else torch.device(device)
        made = tensor(data, dtype=dtype, device="cpu")
        if there.type != "cpu" and made.numel():
            streams.refuse_in_capture("torch.tensor")
        return made if there.type == "cpu" else torch.empty(made.shape, dtype=made.dtype, device=there)

    return make


def _one(mode: FakeTensorMode, operator: Any, tensor: Tensor) -> Any:
    """What `item` reads: yes, 1, or no difference."""
    return True if tensor.dtype == torch.bool else 0.0 if tensor.dtype.is_floating_point else 1


def _equal(mode: FakeTensorMode, operator: Any, first: Tensor, second: Tensor, *near: Any, **named: Any) -> bool:
    """What `equal` and `allclose` say."""
    assert first.device == second.device, (first.device, second.device)
    return True


def _nowhere(mode: FakeTensorMode, operator: Any, tensor: Tensor) -> Tensor:
    """What `nonzero` finds."""
    return tensor.new_empty((0, tensor.dim()), dtype=torch.int64)


def _all_differ(mode: FakeTensorMode, operator: Any, tensor: Tensor, *options: Any, **named: Any) -> tuple[Tensor, ...]:
    """What `unique` finds."""
    return tuple(tensor.new_empty(tensor.numel(), dtype=dtype) for dtype in (tensor.dtype, torch.int64, torch.int64))


def _everywhere(index: Callable[..., Any]) -> Callable[..., Any]:
    """What is taken by a mask: everything."""

    def take(mode: FakeTensorMode, operator: Any, tensor: Tensor, indices: Any) -> Any:
        flat: list[Tensor | None] = []
        for its in indices:
            if its is None or its.dtype != torch.bool:
                flat.append(its)
            else:
                flat += [its.new_empty(its.numel(), dtype=torch.int64) for _ in range(its.dim())]
        return index(mode, operator, tensor, flat)

    return take


def _drawn(mode: FakeTensorMode, operator: Any, tensor: Tensor, *options: Any, **named: Any) -> Tensor:
    """What `exponential_` leaves."""
    return tensor


def _pinned(mode: FakeTensorMode, operator: Any, tensor: Tensor, device: Any = None) -> Tensor:
    """Host memory stays host memory."""
    assert tensor.device.type == "cpu", tensor.device
    return tensor.new_empty(tensor.shape)


def is_pinned(tensor: Tensor) -> bool:
    """Whether `pin_memory` has made a tensor."""
    return getattr(tensor, PINNED, False)


def _values(tensor: Tensor) -> list[Any]:
    """What `tolist` reads: true where truths are asked for, zeros, else 0 and 1 in turn, which are labels and tokens
    that there are; rows of two are the first and the last of one entry each."""
    if tensor.dim() > 1:
        return [[row, row + 1] if tensor.shape[1] == 2 else _values(tensor[row]) for row in range(len(tensor))]
    if tensor.dtype == torch.bool or tensor.dtype.is_floating_point:
        return [True if tensor.dtype == torch.bool else 0.0] * len(tensor)
    return [place % 2 for place in range(len(tensor))]


def _read(gpu: FakeGpu) -> Callable[[Tensor], Any]:
    def tolist(tensor: Tensor) -> Any:
        gpu.streams.work("tolist", [tensor], [])
        gpu.streams.current.synchronize()
        return _values(tensor) if tensor.dim() else tensor.item()

    return tolist


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu | None = None) -> Iterator[FakeGpu]:
    """Inside, `torch.empty(..., device=GPU)` works, in this thread and in those that load tasks.

    What reads a value, which no tensor has, gets one that says that all is well. gpu: of tensors made before.
    """
    triton_ops = pytest.importorskip("sparsehub.kernels.triton_ops")
    gpu = gpu or FakeGpu(FakeTensorMode(allow_non_fake_inputs=True))
    for name in KERNELS:
        monkeypatch.setattr(triton_ops, name, Launch(name, gpu))
    _without_memory(monkeypatch, gpu)
    _with_streams(monkeypatch, gpu.streams)
    monkeypatch.setattr(torch, "Generator", gpu.generator)
    monkeypatch.setattr(residency, "ThreadPoolExecutor", gpu.threads)
    monkeypatch.setattr(checksum, "_bytes", lambda tensor: memoryview(b""))
    monkeypatch.setattr(checksum, "_weights", checksum._weights.__wrapped__)  # none of these stays
    monkeypatch.setattr(heads, "_template", _real(heads._template))
    with device_guard(), gpu.on():
        yield gpu


def _without_memory(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
    """What reads or makes values."""
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda tensor: 64, raising=False)
    monkeypatch.setattr(FakeTensor, "tolist", _read(gpu), raising=False)
    monkeypatch.setattr(torch, "tensor", _without_values(torch.tensor, gpu.streams))
    known = op_implementations_dict
    monkeypatch.setitem(known, aten._local_scalar_dense.default, _one)
    monkeypatch.setitem(known, aten.equal.default, _equal)
    monkeypatch.setitem(known, aten.allclose.default, _equal)
    monkeypatch.setitem(known, aten.nonzero.default, _nowhere)
    monkeypatch.setitem(known, aten._unique2.default, _all_differ)
    monkeypatch.setitem(known, aten.index.Tensor, _everywhere(known[aten.index.Tensor]))
    monkeypatch.setitem(known, aten.exponential_.default, _drawn)
    monkeypatch.setitem(known, aten._pin_memory.default, _pinned)


def _with_streams(monkeypatch: pytest.MonkeyPatch, streams: Streams) -> None:
    """The streams and graphs of `torch.cuda`, and the stream that transformers computes on."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", streams.graph)
    monkeypatch.setattr(torch.cuda, "graph", streams.capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "Stream", streams.stream)
    monkeypatch.setattr(torch.cuda, "stream", streams.use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: streams.current)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: streams.default)
    monkeypatch.setattr(torch.cuda, "device_of", streams.on_device_of)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: streams.synchronize())
    for name in ("input_outputs", "model_runner"):
        with suppress(ImportError):  # an older release
            module = importlib.import_module(f"transformers.generation.continuous_batching.{name}")
            monkeypatch.setattr(module, "create_device_stream", streams.stream, raising=False)
            monkeypatch.setattr(module, "stream_context", streams.use, raising=False)


def on_gpu(module: nn.Module) -> nn.Module:
    """The module's parameters and buffers become tensors on the fake GPU; inside `fake_gpu`."""
    for part in module.modules():
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = torch.empty(parameter.shape, dtype=parameter.dtype, device=GPU)
                new = known.setdefault(id(parameter), nn.Parameter(there, requires_grad=False))
                part._parameters[name] = new
    return module
