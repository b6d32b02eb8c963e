"""The layer stack: the list of modules that a backbone's hidden states go through one after the other, found by
watching a pass.

It is where rows of one text can part: what runs before a layer is the same for all tasks that change nothing before it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Path = tuple[int | str, ...]  # where a tensor is in a call: the place or the name of its argument, then inside of it
BEFORE = -1  # what is changed before the first layer counts as changed there


@dataclass(frozen=True)
class LayerStack:
    """A backbone's layers and what they are called with; `trunk_forward.py` runs rows of one text once through it."""

    modules: tuple[nn.Module, ...]
    hidden: Path  # where a layer's call has the hidden states, which are what the layer before gave
    # every other tensor that a layer is called with, such as masks and position embeddings: whether it has a row for
    # each sequence of the batch
    by_row: Mapping[Path, bool]
    # by a target module's index, the first layer whose input may not be shared by tasks that change it; `BEFORE`, or
    # at most the last layer
    first: Mapping[int, int]
    # by layer, the target modules that read its input, as it is or behind one that does
    readers: Sequence[Sequence[int]] = ()
    # the module of the last layer from whose input on all is computed token by token; None where there is none
    token_from: nn.Module | None = None
    # the module of the last layer, called before that one, whose output is read at the one token alone: that of queries
    asked_by: nn.Module | None = None
    nones: int | None = None  # beside the states, in the tuple that a layer gives; None where it gives them alone
    resumes: bool = False  # whether it was proved that layers can be left out for rows whose states are known

    def cut_at(self, token_from: nn.Module | None, asked_by: nn.Module | None = None) -> LayerStack:
        """The same layers, with another `token_from` and `asked_by`."""
        return dataclasses.replace(self, token_from=token_from, asked_by=asked_by)

    def given(self, hidden: Tensor) -> Any:
        """What a layer gives that leaves the hidden states as they are."""
        return hidden if self.nones is None else (hidden, *[None] * self.nones)

    def hidden_of(self, args: Any, kwargs: Any) -> Tensor:
        """The hidden states that a layer is called with."""
        found = kwargs if isinstance(self.hidden[0], str) else args
        for step in self.hidden:
            found = found[step]
        states: Tensor = found
        return states

    def first_changed(self, touched: Collection[int]) -> int:
        """The layer at whose input a task's rows leave those of other tasks; as many as there are layers for a task
        that changes nothing. touched: indices of the target modules that it changes."""
        return min((self.first[index] for index in touched), default=len(self.modules))


@dataclass
class _Watched:
    """What one pass has shown of the calls of some modules."""

    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)  # in order
    outputs: dict[int, Any] = field(default_factory=dict)  # by the module's id


def find_layers(module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> LayerStack | str:
    """The layer stack of a model, or why it has none, without what is known of targets (`with_targets`).

    batches: two that differ in their number of rows alone, with padding, so that masks are made.
    """
    lists = [tuple(found) for found in module.modules() if isinstance(found, nn.ModuleList) and len(found)]
    members = {member for layers in lists for member in layers}
    watched = [_watch(module, members, batch) for batch in batches]
    chains = [layers for layers in lists if all(_hidden(layers, its) is not None for its in watched)]
    if not chains:
        return "no list of its modules hands the hidden states from one to the next"
    layers = max(chains, key=len)  # of equal ones the outermost, which comes first
    hidden = {_hidden(layers, its) for its in watched}
    shapes = [_shapes(layers, its) for its in watched]
    if len(hidden) > 1 or shapes[0].keys() != shapes[1].keys():
        return "its layers are called in another way for another number of rows"
    path = hidden.pop()
    assert path is not None
    by_row = {place: shapes[0][place] != shapes[1][place] for place in shapes[0] if place != path}
    output = watched[0].outputs[id(layers[0])]
    return LayerStack(layers, path, by_row, {}, nones=len(output) - 1 if isinstance(output, tuple | list) else None)


def with_targets(
    module: nn.Module, stack: LayerStack, targets: Sequence[nn.Module], batch: Mapping[str, Tensor]
) -> LayerStack:
    """The same layers, with `first` and `readers`, by what a pass calls and when. targets: by index."""
    seen = _TargetCalls(stack, targets)
    hooks = [m.register_forward_pre_hook(seen.begin, with_kwargs=True) for m in {*targets, *stack.modules}]
    hooks += [target.register_forward_hook(seen.end) for target in set(targets)]
    with _hooked(hooks), torch.inference_mode():
        module(**batch)
    first = {index: seen.first[target] for index, target in enumerate(targets)}
    return dataclasses.replace(stack, first=first, readers=[tuple(found) for found in seen.readers])


class _TargetCalls:
    """What one pass shows of the calls of target modules."""

    def __init__(self, stack: LayerStack, targets: Sequence[nn.Module]):
        self._stack, self._layer = stack, BEFORE  # that was begun last
        self._places = {layer: index for index, layer in enumerate(stack.modules)}
        self._targets = {target: index for index, target in reversed([*enumerate(targets)])}
        last = len(stack.modules) - 1
        self.first = dict.fromkeys(targets, last)  # one that is not called changes no hidden state
        self.readers: list[list[int]] = [[] for _ in stack.modules]
        self._called: set[nn.Module] = set()
        self._inputs: list[Tensor] = []  # the layer's input, and what the targets that read it gave

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a call of a layer or a target."""
        given = dict(tensors_of(args)) | dict(tensors_of(kwargs))
        if module in self._places:
            self._layer, self._inputs = self._places[module], [given[self._stack.hidden]]
        if module in self._targets:
            if module not in self._called:
                self.first[module] = self._layer
            self._called.add(module)
            if self._reads(args):
                self.readers[self._layer].append(self._targets[module])

    def end(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After a call of a target."""
        if self._reads(args) and isinstance(output, Tensor):
            self._inputs.append(output)

    def _reads(self, args: tuple[Any, ...]) -> bool:
        return self._layer != BEFORE and bool(args) and any(args[0] is given for given in self._inputs)


def tensors_of(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in tuples, lists and dictionaries, with its place."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, tuple | list):
        for place, part in enumerate(value):
            yield from tensors_of(part, (*path, place))
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from tensors_of(part, (*path, name))


def _watch(module: nn.Module, members: set[nn.Module], batch: Mapping[str, Tensor]) -> _Watched:
    watched = _Watched()

    def before(member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watched.calls.append((member, args, kwargs))

    def after(member: nn.Module, _: Any, output: Any) -> None:
        watched.outputs[id(member)] = output

    hooks = [member.register_forward_pre_hook(before, with_kwargs=True) for member in members]
    hooks += [member.register_forward_hook(after) for member in members]
    with _hooked(hooks), torch.inference_mode():
        module(**batch)
    return watched


@contextmanager
def _hooked(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hidden(layers: Sequence[nn.Module], watched: _Watched) -> Path | None:
    """Where each of the layers is called with what the one before gave; None where they are called in another way."""
    calls = [(member, args, kwargs) for member, args, kwargs in watched.calls if member in set(layers)]
    if [member for member, _, _ in calls] != list(layers):
        return None
    paths = {_first_path(args, kwargs) for _, args, kwargs in calls}
    if len(paths) != 1 or (path := paths.pop()) is None:
        return None
    for (member, _, _), (_, args, kwargs) in itertools.pairwise(calls):
        given = dict(tensors_of(args)) | dict(tensors_of(kwargs))
        if given[path] is not _first_tensor(watched.outputs[id(member)]):
            return None
    return path


def _first_path(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Path | None:
    return next((path for path, tensor in (*tensors_of(args), *tensors_of(kwargs)) if tensor.ndim == 3), None)


def _first_tensor(output: Any) -> Tensor | None:
    return next((tensor for _, tensor in tensors_of(output)), None)


def _shapes(layers: Sequence[nn.Module], watched: _Watched) -> dict[Path, set[int]]:
    """The numbers of rows of every tensor that the layers are called with, by its place."""
    rows: dict[Path, set[int]] = {}
    for member, args, kwargs in watched.calls:
        if member in set(layers):
            for path, tensor in (*tensors_of(args), *tensors_of(kwargs)):
                rows.setdefault(path, set()).add(tensor.shape[0] if tensor.ndim else 0)
    return rows
