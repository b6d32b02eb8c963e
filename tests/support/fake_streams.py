"""The streams of a GPU that is not there: an error where one touches memory that another may still be using.

Every operation is work of the stream that is current then. Before it reads or writes, whatever another stream has done
to the same memory must be over: the stream has waited for that one, or the host has. Memory that another stream than
its own has used must be let go by that one before it is freed, since its own stream may get it again at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
# Operators for whose result the host waits.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::allclose",
    "aten::nonzero",
    "aten::_unique2",
}
COPIES = {"aten::_to_copy", "aten::copy_"}
PINNED = "was_pinned"  # an attribute of what `pin_memory` has made
EMPTY = {"aten::empty_like", "aten::new_empty", "aten::new_empty_strided"}  # that read nothing

Done = dict[int, int]  # by the number of a stream, how much of its work


class StreamOrderError(AssertionError):
    """Two streams use the same memory, and neither has waited for the other."""


class CaptureError(RuntimeError):
    """What a stream does not allow while it is captured."""


class Streams:
    """The streams of the GPU: which is current in each thread, and what the host has waited for. They stand for those
    of `torch.cuda`."""

    def __init__(self) -> None:
        self._all: list[FakeStream] = []
        self._local = threading.local()
        self.host: Done = {}  # what it has waited for
        self.default = self.stream()
        self._memory: dict[int, _Memory] = {}  # by address of the storage
        self._shared: set[int] = set()  # of it, what more than one stream has used

    def stream(self, device: Any = None, priority: int = 0) -> FakeStream:
        """A new stream."""
        assert device is None or torch.device(device).type == "cuda", device
        self._all.append(FakeStream(self, len(self._all)))
        return self._all[-1]

    @property
    def current(self) -> FakeStream:
        """The current stream of this thread."""
        found: FakeStream = getattr(self._local, "stream", self.default)
        return found

    @contextmanager
    def use(self, stream: FakeStream | None) -> Iterator[None]:
        """Inside, a stream is current."""
        before = self.current
        self._local.stream = before if stream is None else stream
        try:
            yield
        finally:
            self._local.stream = before

    @property
    def device(self) -> torch.device | None:
        """The current device of this thread, where one was chosen: what needs one is not to lean on the first."""
        return getattr(self._local, "device", None)

    @contextmanager
    def on_device_of(self, tensor: Tensor) -> Iterator[None]:
        """Inside, a tensor's device is current."""
        before, self._local.device = self.device, tensor.device
        try:
            yield
        finally:
            self._local.device = before

    @property
    def captured(self) -> FakeGraph | None:
        """The graph that this thread captures."""
        return getattr(self._local, "graph", None)

    def refuse_in_capture(self, what: str) -> None:
        """Raise `CaptureError` while a graph is captured."""
        if self.captured is not None:
            raise CaptureError(f"{what}: operation not permitted when stream is capturing")

    def graph(self) -> FakeGraph:
        """A new graph."""
        return FakeGraph(self)

    @contextmanager
    def capture(
        self, graph: FakeGraph, pool: Any = None, stream: FakeStream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        """Stands for `torch.cuda.graph`: inside, the work of this thread becomes the graph's."""
        assert capture_error_mode in ("global", "thread_local", "relaxed") and self.captured is None
        self.synchronize()
        with self.use(stream or self.stream()):
            self._local.graph = graph
            try:
                yield
            finally:
                self._local.graph = None

    def synchronize(self) -> None:
        """The host waits for everything."""
        self.refuse_in_capture("synchronize")
        for stream in self._all:
            stream.synchronize()

    def work(self, name: str, reads: Iterable[Tensor], writes: Iterable[Tensor]) -> None:
        """An operation of the current stream; raises `StreamOrderError`. While a graph is captured it is kept for that,
        and nothing runs."""
        if self.captured is not None:
            self.captured.launches.append((name, list(reads), list(writes)))
            return
        stream = self.current
        _merge(stream.before, self.host)
        self._look_at_freed()
        stream.count += 1
        for tensor, wrote in [*((t, False) for t in reads), *((t, True) for t in writes)]:
            if tensor.device.type != "cuda":
                continue
            memory = self._memory_of(tensor, stream)
            memory.use(name, stream, wrote)
            if len(memory.uses) > 1:
                self._shared.add(memory.storage.cdata)

    def _memory_of(self, tensor: Tensor, stream: FakeStream) -> _Memory:
        storage = StorageWeakRef(tensor.untyped_storage())  # while there is one, its address is not used again
        return self._memory.setdefault(storage.cdata, _Memory(storage, stream))

    def _look_at_freed(self) -> None:
        for address in [address for address in self._shared if self._memory[address].storage.expired()]:
            self._shared.discard(address)
            memory = self._memory.pop(address)
            _merge(memory.owner.before, self.host)
            for use in memory.uses.values():
                if not memory.owner.is_behind(use.stream, use.last):
                    raise StreamOrderError(f"memory was freed that {use.what} on {use.stream} may still use")


class FakeStream:
    """Stands for `torch.cuda.Stream`."""

    def __init__(self, streams: Streams, number: int):
        self._streams, self.number, self.device = streams, number, GPU
        self.count = 0  # of its work
        self.before: Done = {}  # what of others is over before its next work

    def __repr__(self) -> str:
        return f"stream {self.number}" if self.number else "the default stream"

    @property
    def done(self) -> Done:
        """What is over when its work so far is."""
        return {**self.before, self.number: self.count}

    def is_behind(self, other: FakeStream, count: int) -> bool:
        """Whether so much of another stream's work is over before its own next."""
        return other is self or self.before.get(other.number, 0) >= count

    def wait_stream(self, other: FakeStream) -> None:
        """What comes now begins when what another stream has to do so far is over."""
        _merge(self.before, other.done)

    def synchronize(self) -> None:
        """The host waits for its work."""
        self._streams.refuse_in_capture("synchronize")
        _merge(self._streams.host, self.done)


@dataclass
class FakeGraph:
    """Stands for `torch.cuda.CUDAGraph`: the work of a capture, with the memory that it uses."""

    streams: Streams
    launches: list[tuple[str, list[Tensor], list[Tensor]]] = field(default_factory=list)
    replays: int = 0

    def replay(self) -> None:
        """Do it on the current stream."""
        assert self.launches, "nothing was captured, or it was reset"
        self.replays += 1
        for name, reads, writes in self.launches:
            self.streams.work(name, reads, writes)

    def reset(self) -> None:
        """Free it."""
        self.launches.clear()


@dataclass
class _Use:
    """What one stream has done to some memory."""

    stream: FakeStream
    what: str = ""  # the last operation
    last: int = 0  # of the stream's work
    wrote: int = 0  # the last of it that wrote


@dataclass
class _Memory:
    """The memory of one storage. owner: the stream that was current when it was first used."""

    storage: StorageWeakRef
    owner: FakeStream
    uses: dict[int, _Use] = field(default_factory=dict)  # by the number of the stream

    def use(self, name: str, stream: FakeStream, wrote: bool) -> None:
        for other in self.uses.values():
            count = other.last if wrote else other.wrote
            if not stream.is_behind(other.stream, count):
                what = "writes" if wrote else "reads"
                raise StreamOrderError(f"{name} on {stream} {what} what {other.what} on {other.stream} may still use")
        own = self.uses.setdefault(stream.number, _Use(stream))
        own.what, own.last = name, stream.count
        if wrote:
            own.wrote = stream.count


def _merge(into: Done, other: Mapping[int, int]) -> None:
    for number, count in other.items():
        into[number] = max(into.get(number, 0), count)


class WatchedOperators(TorchDispatchMode):
    """Inside, every operator of torch is work of the current stream, and draws from a generator of its device."""

    def __init__(self, streams: Streams, generators: Sequence[Any]):
        super().__init__()
        self._streams, self._generators = streams, generators  # of the GPU

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        result = func(*args, **named)
        if func._schema.name == "aten::_pin_memory":
            setattr(result, PINNED, True)
        if not (func.is_view or func._schema.name.startswith("prim::")):  # which asks for a shape or a device
            self._note(func._schema, args, named, result)
        return result

    def _note(self, schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        reads, writes = [], []
        for place, argument in enumerate(schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            wrote = argument.alias_info is not None and argument.alias_info.is_write
            (writes if wrote else reads).extend(tensors_in(value))
        devices = {tensor.device.type for tensor in (*reads, *writes)}
        self._check_generator(schema.name, kwargs.get("generator"), writes or list(tensors_in(result)))
        fresh = [tensor for tensor in tensors_in(result) if not any(tensor is old for old in writes)]
        self._streams.work(schema.name, [] if schema.name in EMPTY else reads, [*writes, *fresh])
        devices |= {tensor.device.type for tensor in fresh}
        crosses = schema.name in COPIES and len(devices) > 1
        if crosses:
            self._streams.refuse_in_capture(schema.name)
        blocking = crosses and not _non_blocking(schema, args, kwargs)
        if blocking or (schema.name in WAITING and "cuda" in devices):
            self._streams.current.synchronize()

    def _check_generator(self, name: str, generator: Any, tensors: Sequence[Tensor]) -> None:
        if generator is None or not tensors:
            return
        there = any(generator._cdata == known._cdata for known in self._generators)
        assert there == (tensors[0].device.type == "cuda"), f"{name}: the generator is not on {tensors[0].device}"


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in lists and tuples, which a call was given."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


def _non_blocking(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    place = next(i for i, argument in enumerate(schema.arguments) if argument.name == "non_blocking")
    return bool(args[place] if place < len(args) else kwargs.get("non_blocking", False))
