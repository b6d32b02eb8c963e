"""Passes of which one token of each row is read: what follows the last layer's attention runs for that token alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsehub.engine.layer_stack import LayerStack


class OneToken:
    """The last layer of one pass whose heads read one token of each row; `BatchRunner` makes one per batch.

    positions: [rows] of the token that is read. Every state that the pass gives for a row is then that token's.
    """

    def __init__(self, layers: LayerStack, positions: Tensor):
        assert layers.token_from is not None  # or no pass would be cut
        self._layer, self._from = layers.modules[-1], layers.token_from
        self._rows, self._positions = torch.arange(len(positions), device=positions.device), positions

    @contextmanager
    def on_model(self) -> Iterator[None]:
        """Inside, the last layer runs so."""
        self._layer.__dict__["forward"] = self.run  # past nn.Module's attribute setting
        try:
            yield
        finally:
            self._layer.__dict__.pop("forward", None)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What the last layer gives, cut from `token_from` on, each row's token in all of its places."""
        own, mode = self._from.__dict__.get("forward"), _Cut(self._rows, self._positions)
        inner = own or functools.partial(type(self._from).forward, self._from)

        def cut(x: Tensor) -> Any:
            mode.length = x.shape[1]
            return inner(mode.one(x))

        self._from.__dict__["forward"] = cut
        try:
            with mode:
                output = type(self._layer).forward(self._layer, *args, **kwargs)
        finally:
            if own is None:
                self._from.__dict__.pop("forward", None)
            else:
                self._from.__dict__["forward"] = own
        return _spread(output, len(self._rows), mode.length)


class _Cut(TorchFunctionMode):
    """Once the first tensor was cut, every other one of the rows' full length, which the layer adds to it, is cut."""

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
        return func(*args, **(kwargs or {}))

    def _is_whole(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.ndim == 3 and x.shape[:2] == (len(self._rows), self.length)


def _spread(output: Any, rows: int, length: int) -> Any:
    """Tensors of one token a row, as if each had all of them; no memory is taken for it."""
    if isinstance(output, Tensor):
        return output.expand(-1, length, -1) if output.ndim == 3 and output.shape[:2] == (rows, 1) else output
    return type(output)(_spread(part, rows, length) for part in output) if isinstance(output, tuple | list) else output


def find_token_from(
    layers: LayerStack, candidates: Sequence[nn.Module], module: nn.Module, batches: Sequence[Mapping[str, Tensor]]
) -> nn.Module | None:
    """The first of the last layer's modules from whose input on all is computed token by token; None where there is
    none. candidates: in the order in which they are called."""
    for candidate in candidates:
        if all(_is_same(layers, candidate, module, batch) for batch in batches):
            return candidate
    return None


@torch.inference_mode()
def _is_same(layers: LayerStack, candidate: nn.Module, module: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    mask = batch["attention_mask"]
    positions = torch.arange(len(mask), device=mask.device) % mask.sum(1)
    whole = module(**batch).last_hidden_state.float()
    try:
        with OneToken(layers.cut_at(candidate), positions).on_model():
            found = module(**batch).last_hidden_state
    except Exception:  # whatever a model makes of it: it is not cut there then
        return False
    right = whole[torch.arange(len(mask)), positions]
    near = 10 * torch.finfo(found.dtype).eps ** 0.75 * float(right.abs().max())
    same = float((found[:, 0].float() - right).abs().max()) <= near
    return same and found.shape == whole.shape and bool((found == found[:, :1]).all())
