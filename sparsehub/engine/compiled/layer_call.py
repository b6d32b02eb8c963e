"""How a backbone's layers are called: the compiler makes a layer's graph by it, and `CompiledLayers` tells by it
whether a call is one that the graph was made for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.engine.layer_stack import LayerStack, Path, find_layers
from sparsehub.errors import EngineError

ROWS, TOKENS = "rows", "tokens"
# Rows and tokens of the watched passes: a size of a tensor that changes with one of them is that one. Odd ones, so that
# they are not taken for a model's own sizes.
_WATCHED = ((3, 23), (5, 19))
Size = int | str  # a number, `ROWS` or `TOKENS`


@dataclass(frozen=True)
class LayerCall:
    """What every layer of a stack is called with, by name: the place or the name of an argument, and where it is in
    it."""

    hidden: str  # the hidden states, [rows, tokens, width]
    tensors: Mapping[str, tuple[Sequence[Size], torch.dtype]]
    others: Mapping[str, Any]  # what is no tensor, such as a flag

    def arguments(self, args: Any, kwargs: Any) -> dict[str, Tensor] | None:
        """The tensors of a call by name; None where it is another kind of call. A mask that is left out, since nothing
        is masked, is one of all tokens."""
        found = {name_of(path): leaf for path, leaf in leaves_of((args, kwargs))}
        if found.keys() != self.tensors.keys() | self.others.keys():
            return None
        if any(type(found[name]) is not type(value) or found[name] != value for name, value in self.others.items()):
            return None
        free = dict(zip((ROWS, TOKENS), found[self.hidden].shape, strict=False))
        given: dict[str, Tensor] = {}
        for name, (sizes, dtype) in self.tensors.items():
            shape = tuple(free[size] if isinstance(size, str) else size for size in sizes)
            tensor = found[name]
            if tensor is None and dtype == torch.bool:
                tensor = torch.ones(shape, dtype=dtype)
            if not isinstance(tensor, Tensor) or tensor.shape != shape or tensor.dtype != dtype:
                return None
            given[name] = tensor
        return given


def name_of(path: Path) -> str:
    """The name of what is in this place of (args, kwargs)."""
    return ".".join(map(str, path[1:]))


def leaves_of(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All that is in tuples, lists and dictionaries, with its place."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        parts: Any = enumerate(value)
    elif type(value) is dict:
        parts = value.items()
    else:
        yield path, value
        return
    for place, part in parts:
        yield from leaves_of(part, (*path, place))


def with_leaves(value: Any, tensors: Mapping[str, Tensor], path: Path = ()) -> Any:
    """(args, kwargs) of a call with other tensors, by name."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(with_leaves(part, tensors, (*path, place)) for place, part in enumerate(value))
    if type(value) is dict:
        return {name: with_leaves(part, tensors, (*path, name)) for name, part in value.items()}
    return tensors.get(name_of(path), value)


def template_of(stack: LayerStack) -> nn.Module:
    """The layer that a graph is made of: of the first some models leave out a part."""
    return stack.modules[len(stack.modules) // 2]


def watched_stack(module: Any) -> LayerStack:
    """The layer stack of a base model, as the compiler's process finds it; raises `EngineError` where it has none."""
    stack = find_layers(module, [_batch(module, rows, _WATCHED[0][1]) for rows, _ in _WATCHED])
    if isinstance(stack, str):
        raise EngineError("its layers cannot be compiled", found=stack)
    return stack


def watch_layer(module: Any, stack: LayerStack) -> tuple[LayerCall, Any]:
    """How the layers of a base model are called, and (args, kwargs) of such a call. Raises `EngineError` where a graph
    cannot be made of that."""
    calls = [_called(module, template_of(stack), _batch(module, *sizes)) for sizes in _WATCHED]
    first, second = ({name_of(path): leaf for path, leaf in leaves_of(call)} for call in calls)
    if first.keys() != second.keys():
        raise EngineError("layers are called in another way for another number of tokens")
    others = {name: value for name, value in first.items() if not isinstance(value, Tensor)}
    for name, value in others.items():
        if not isinstance(value, bool | int | float | str | None) or value != second[name]:
            raise EngineError(f"layers are called with {name} ({type(value).__name__})")
    tensors = {
        name: (_sizes(name, value, second[name]), value.dtype) for name, value in first.items() if name not in others
    }
    return LayerCall(name_of((0, *stack.hidden)), tensors, others), calls[0]


def _sizes(name: str, tensor: Tensor, other: Tensor) -> tuple[Size, ...]:
    """Which sizes of a tensor are the rows or the tokens of a pass. other: the same tensor of the other pass."""
    (rows, tokens), (other_rows, other_tokens) = _WATCHED
    known = {(rows, other_rows): ROWS, (tokens, other_tokens): TOKENS}
    sizes: list[Size] = []
    for pair in itertools.zip_longest(tensor.shape, other.shape):
        size: Size | None = pair[0] if pair[0] == pair[1] else known.get(pair)
        if size is None:
            raise EngineError(f"layers are called with {name}, of sizes that follow neither rows nor tokens")
        sizes.append(size)
    return tuple(sizes)


def _batch(module: Any, rows: int, tokens: int) -> dict[str, Tensor]:
    """Token ids with padding behind the last row, so that masks are made."""
    ids = torch.randint(module.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, tokens // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _called(module: Any, layer: nn.Module, batch: dict[str, Tensor]) -> Any:
    """What a layer is called with in a pass: (args, kwargs)."""
    calls: list[Any] = []

    def watch(_: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append((args, kwargs))

    hook = layer.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad():
            module(**batch)
    finally:
        hook.remove()
    return calls[0]
