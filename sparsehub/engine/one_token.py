"""Passes of which one token of each row is read: it alone asks the last layer's attention, and what follows runs for it
alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from sparsehub.engine.layer_stack import LayerStack
from sparsehub.engine.module_forwards import with_forwards


class OneToken:
    """The last layer of one pass whose heads read one token of each row; `BatchRunner` makes one per batch.

    positions: [rows] of the token that is read. Every state that the pass gives for a row is then that token's.
    """

    def __init__(self, layers: LayerStack, positions: Tensor):
        assert layers.token_from is not None  # or no pass would be cut
        self._layers, self._layer, self._from = layers, layers.modules[-1], layers.token_from
        self._rows, self._positions = torch.arange(len(positions), device=positions.device), positions

    def of_rows(self, rows: slice) -> OneToken:
        """The same of some of the rows."""
        return OneToken(self._layers, self._positions[rows])

    def on_model(self) -> AbstractContextManager[None]:
        """Inside, the last layer runs so."""
        return with_forwards({self._layer: self.run})

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What the last layer gives, cut from `token_from` on, each row's token in all of its places."""
        mode = _Cut(self._rows, self._positions)
        with ExitStack() as stack:
            if self._layers.asked_by is not None:
                stack.enter_context(_cut_input(self._layers.asked_by, mode, spread=True))
            stack.enter_context(_cut_input(self._from, mode, spread=False))
            stack.enter_context(mode)
            output = type(self._layer).forward(self._layer, *args, **kwargs)
        return _spread(output, len(self._rows), mode.length)


@contextmanager
def _cut_input(module: nn.Module, mode: _Cut, *, spread: bool) -> Iterator[None]:
    """Inside, a module sees one token of each row. spread: its output stands for all tokens again; else what follows is
    cut too."""
    own = module.__dict__.get("forward")
    inner = own or functools.partial(type(module).forward, module)

    def cut(x: Tensor) -> Any:
        y = inner(mode.one(x))
        if spread:
            return y.expand(-1, x.shape[1], -1)
        mode.length = x.shape[1]
        return y

    module.__dict__["forward"] = cut
    try:
        yield
    finally:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = own


class _Cut(TorchFunctionMode):
    """Attention is asked by the token that is read alone; its answer stands for all tokens, without memory, until it is
    cut. Once the first tensor was cut, every other one of the rows' full length, which the layer adds to it, is cut."""

    def __init__(self, rows: Tensor, positions: Tensor):
        super().__init__()
        self._rows, self._positions = rows, positions
        self.length = 1  # of what is cut

    def one(self, x: Tensor) -> Tensor:
        """[rows, length, width] to [rows, 1, width]."""
        with torch._C.DisableTorchFunction():
            return x[self._rows, self._positions].unsqueeze(1)

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self.length > 1:
            args = tuple(self.one(x) if self._is_whole(x) else x for x in args)
        elif func is scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        elif func is Tensor.contiguous and _is_spread(args[0]):
            return args[0][:, :1].contiguous().expand_as(args[0])
        return func(*args, **(kwargs or {}))

    def _is_whole(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.ndim == 3 and x.shape[:2] == (len(self._rows), self.length)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """torch's attention of queries [rows, heads, length, width], asked by one token of each row."""
        length = query.shape[-2]
        if query.ndim == 4 and query.shape[0] == len(self._rows) and length == key.shape[-2] > 1:
            if is_causal:
                attn_mask = (torch.arange(length, device=query.device) <= self._positions[:, None])[:, None, None]
            elif attn_mask is not None and attn_mask.shape[-2] > 1:
                whole = attn_mask.expand(len(query), *(attn_mask.shape[1:] if attn_mask.ndim == 4 else (1, -1, -1)))
                attn_mask = whole[self._rows, :, self._positions].unsqueeze(2)
            query, is_causal = query[self._rows, :, self._positions].unsqueeze(2), False
        found = scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return found.expand(*found.shape[:-2], length, -1)


def _is_spread(x: Tensor) -> bool:
    """Whether a tensor [rows, length, ...] has one token's values in all places, and no memory for them."""
    return x.ndim > 2 and x.shape[1] > 1 and x.stride(1) == 0


def _spread(output: Any, rows: int, length: int) -> Any:
    """Tensors of one token a row, as if each had all of them; no memory is taken for it."""
    if isinstance(output, Tensor):
        return output.expand(-1, length, -1) if output.ndim == 3 and output.shape[:2] == (rows, 1) else output
    return type(output)(_spread(part, rows, length) for part in output) if isinstance(output, tuple | list) else output


def find_cuts(
    layers: LayerStack, candidates: Sequence[nn.Module], module: nn.Module, batches: Sequence[Mapping[str, Tensor]]
) -> LayerStack:
    """The same layers, with the first of the last layer's modules from whose input on all is computed token by token,
    and the first of those before it whose output is read at that token alone; without where there is none.

    candidates: in the order in which they are called.
    """
    for place, candidate in enumerate(candidates):
        cut = layers.cut_at(candidate)
        if gives_the_same(cut, module, batches):
            asked = (layers.cut_at(candidate, before) for before in candidates[:place])
            return next((with_query for with_query in asked if gives_the_same(with_query, module, batches)), cut)
    return layers.cut_at(None)


def gives_the_same(layers: LayerStack, module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether a pass that is cut gives what one that is not gives for the token that is read."""
    return all(_is_same(layers, module, batch) for batch in batches)


@torch.inference_mode()
def _is_same(layers: LayerStack, module: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    mask = batch["attention_mask"]
    positions = torch.arange(len(mask), device=mask.device) % mask.sum(1)
    whole = module(**batch).last_hidden_state.float()
    try:
        with OneToken(layers, positions).on_model():
            found = module(**batch).last_hidden_state
    except Exception:  # whatever a model makes of it: it is not cut there then
        return False
    right = whole[torch.arange(len(mask)), positions]
    near = 10 * torch.finfo(found.dtype).eps ** 0.75 * float(right.abs().max())
    same = float((found[:, 0].float() - right).abs().max()) <= near
    return same and found.shape == whole.shape and bool((found == found[:, :1]).all())
