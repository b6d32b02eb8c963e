"""A compiled program in memory, called through its C interface, so that Python's other threads run meanwhile.

torch's own Python binding holds the interpreter's lock for the whole pass: no request would be read while one runs.
The interface is `torch/csrc/inductor/aoti_runtime/interface.h`.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsehub.engine.compiled.program_files import ProgramFiles
from sparsehub.errors import EngineError

_FLOAT32 = 4  # bytes


class _Constant(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("handle", c_void_p))


class Program:
    """A backbone's compiled forward on one set of weights, which it reads where they are: a change in place is seen.

    weights: parameters and buffers by name, on the CPU; they must stay where they are. Not thread-safe. Raises
    `EngineError` where the library cannot be loaded, or wants a weight that there is not.
    """

    def __init__(self, files: ProgramFiles, weights: Mapping[str, Tensor]):
        self.inputs, self.outputs = files.inputs, files.outputs
        try:
            self._library = ctypes.CDLL(str(files.library))
        except OSError as error:
            raise EngineError("a compiled program cannot be loaded", found=str(error)) from error
        self._container = c_void_p()
        self._call("CreateWithDevice", byref(self._container), c_size_t(1), b"cpu", None)
        weakref.finalize(self, self._library.AOTInductorModelContainerDelete, self._container)
        self._weights: list[Tensor] = []  # kept alive
        self._bind(weights)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the base model returns. inputs: [rows, tokens] int64 each, by name."""
        tensors = [inputs[name].contiguous() for name in self.inputs]
        handles = (c_void_p * len(tensors))(*map(_handle_of, tensors))  # the call takes these
        results = (c_void_p * len(self.outputs))()
        self._call("Run", self._container, handles, c_size_t(len(tensors)), results, c_size_t(len(results)), None, None)
        return {name: _tensor_of(handle) for name, handle in zip(self.outputs, results, strict=True)}

    def _bind(self, weights: Mapping[str, Tensor]) -> None:
        names = self._constants()
        if missing := [name for name in names.values() if name not in weights]:
            raise EngineError("a compiled program wants weights that there are not", found=", ".join(missing)[:300])
        self._weights = [weights[name].detach() for name in names.values()]
        if not all(tensor.is_contiguous() and tensor.is_cpu for tensor in self._weights):
            raise EngineError("a compiled program wants weights that lie whole in the CPU's memory")
        pairs = (_Constant * len(names))()
        for pair, name, tensor in zip(pairs, names, self._weights, strict=True):
            pair.name, pair.handle = name, _handle_of(tensor)
        self._call(
            "UpdateUserManagedConstantBufferPairs",
            self._container,
            pairs,
            c_size_t(len(names)),
            ctypes.c_bool(False),
            ctypes.c_bool(True),
        )

    def _constants(self) -> dict[bytes, str]:
        """The model's names of the weights, by the program's own."""
        count = c_size_t()
        self._call("GetNumConstants", self._container, byref(count))
        names: dict[bytes, str] = {}
        for index in range(count.value):
            own, theirs = c_char_p(), c_char_p()
            self._call("GetConstantName", self._container, c_size_t(index), byref(own))
            self._call("GetConstantOriginalFQN", self._container, c_size_t(index), byref(theirs))
            names[own.value or b""] = (theirs.value or b"").decode().removeprefix("module.")
        return names

    def _call(self, name: str, *arguments: Any) -> None:
        if self._library[f"AOTInductorModelContainer{name}"](*arguments):
            message = c_char_p()
            self._library.AOTInductorGetLastError(byref(message))
            raise EngineError("a compiled program failed", found=(message.value or b"").decode(errors="replace")[:300])


@functools.cache
def _torch() -> Any:
    """torch's own C interface, `torch/csrc/inductor/aoti_torch/c/shim.h`."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    library.aoti_torch_delete_tensor_object.argtypes = [c_void_p]
    for name in ("get_data_ptr", "get_dim", "get_sizes", "get_strides"):
        getattr(library, f"aoti_torch_{name}").argtypes = [c_void_p, c_void_p]
    return library


@functools.cache
def _dtype_number(dtype: torch.dtype) -> int:
    number: int = getattr(_torch(), f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()
    return number


def _checked(code: int) -> None:
    if code:
        raise EngineError("torch could not hand a tensor to a compiled program")


def _handle_of(tensor: Tensor) -> int:
    """A new handle of a tensor's memory, which the tensor goes on owning."""
    shape = c_int64 * tensor.ndim
    handle = c_void_p()
    _checked(
        _torch().aoti_torch_create_tensor_from_blob(
            c_void_p(tensor.data_ptr()),
            c_int64(tensor.ndim),
            shape(*tensor.shape),
            shape(*tensor.stride()),
            c_int64(0),
            c_int32(_dtype_number(tensor.dtype)),
            c_int32(0),
            c_int32(-1),
            byref(handle),
        )
    )
    assert handle.value is not None  # the call succeeded
    return handle.value


def _tensor_of(handle: int) -> Tensor:
    """A float32 tensor in the memory of a handle, which it takes over."""
    ndim, sizes, strides, data = c_int64(), POINTER(c_int64)(), POINTER(c_int64)(), c_void_p()
    places = {"get_dim": ndim, "get_sizes": sizes, "get_strides": strides, "get_data_ptr": data}
    for name, place in places.items():
        _checked(getattr(_torch(), f"aoti_torch_{name}")(handle, byref(place)))
    shape, steps = sizes[: ndim.value], strides[: ndim.value]
    entries = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    memory = _owned(entries * _FLOAT32).from_address(data.value or 0)
    memory.handle = handle
    return torch.frombuffer(memory, dtype=torch.float32).as_strided(shape, steps)


@functools.lru_cache(maxsize=256)
def _owned(nbytes: int) -> Any:
    """The type of a buffer of so many bytes that gives its handle back when no tensor reads it any more."""

    def give_back(memory: Any) -> None:
        _torch().aoti_torch_delete_tensor_object(memory.handle)

    return type("OwnedMemory", (ctypes.c_byte * nbytes,), {"handle": 0, "__del__": give_back})
