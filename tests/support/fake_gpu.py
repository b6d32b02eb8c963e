"""A GPU that is not there: tensors that have a device, a shape and a dtype but no memory, on a machine without a GPU.

Two devices in one operation are an error, as they would be on the GPU (`FakeTensorDeviceMismatchError`); a Triton
kernel is not launched, but its tensors are looked at.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from sparsehub.engine import checksum, task_loader
from sparsehub.package import heads

GPU = torch.device("cuda", 0)
CUDA, META = 1, 14  # of `c10::DeviceType`
KERNELS = [f"_{name}" for name in ("gather", "scatter_copy", "scatter_add", "sparse_linear", "sparse_prefill")]
KERNELS += ["_sparse_lookup", "_scale_shift"]


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

    def __init__(self, name: str, launched: list[str]):
        self._name, self._launched = name, launched

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid), (self._name, grid)
        return self._launch

    def _launch(self, *arguments: Any, **constants: Any) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        assert all(tensor.device == GPU for tensor in tensors), (self._name, [tensor.device for tensor in tensors])
        assert all(tensor.is_contiguous() for tensor in tensors), self._name
        self._launched.append(self._name)


def _real(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run without a fake GPU."""

    def run(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments)

    return run


def _without_values(tensor: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor`: a single value would be kept beside the fake tensor, and really moved to the GPU."""

    def make(data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        made = tensor(data, dtype=dtype)
        return made if device is None else torch.empty(made.shape, dtype=made.dtype, device=device)

    return make


def _one(mode: FakeTensorMode, operator: Any, tensor: Tensor) -> Any:
    """What `item` reads: yes, or 1."""
    return True if tensor.dtype == torch.bool else 1


def _nowhere(mode: FakeTensorMode, operator: Any, tensor: Tensor) -> Tensor:
    """What `nonzero` finds."""
    return tensor.new_empty((0, tensor.dim()), dtype=torch.int64)


def _pinned(mode: FakeTensorMode, operator: Any, tensor: Tensor, device: Any = None) -> Tensor:
    """Host memory stays host memory."""
    assert tensor.device.type == "cpu", tensor.device
    return tensor.new_empty(tensor.shape)


def _stretches(tensor: Tensor) -> list[Any]:
    """What `tolist` reads: True where truths are asked for, else rows that follow each other, one entry in each."""
    if tensor.dim() == 2:
        return [[row, row + 1] for row in range(tensor.shape[0])]
    return [tensor.dtype == torch.bool] * tensor.shape[0]


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Inside, `torch.empty(..., device=GPU)` works, and the yielded list says which kernels would have been launched.

    What reads a value, which no tensor has, gets one that says that all is well.
    """
    triton_ops = pytest.importorskip("sparsehub.kernels.triton_ops")
    launched: list[str] = []
    for name in KERNELS:
        monkeypatch.setattr(triton_ops, name, Launch(name, launched))
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda tensor: 64, raising=False)
    monkeypatch.setattr(FakeTensor, "tolist", _stretches, raising=False)
    monkeypatch.setattr(checksum, "_bytes", lambda tensor: memoryview(b""))
    monkeypatch.setattr(checksum, "_weights", checksum._weights.__wrapped__)  # none of these stays
    monkeypatch.setitem(op_implementations_dict, torch.ops.aten._local_scalar_dense.default, _one)
    monkeypatch.setitem(op_implementations_dict, torch.ops.aten.nonzero.default, _nowhere)
    monkeypatch.setitem(op_implementations_dict, torch.ops.aten._pin_memory.default, _pinned)
    monkeypatch.setattr(torch, "tensor", _without_values(torch.tensor))
    monkeypatch.setattr(heads, "_template", _real(heads._template))
    monkeypatch.setattr(task_loader, "_beside_batches", lambda device: nullcontext())
    with device_guard(), FakeTensorMode(allow_non_fake_inputs=True):
        yield launched


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
