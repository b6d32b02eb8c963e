"""Training every entry in scope: what full fine-tuning and the methods that begin with it are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.delta import Delta
from sparsehub.package.task_model import TaskModel
from sparsehub.selection.largest import cut
from sparsehub.training.sparse_model import Hooks, finite, not_the_head, slices
from sparsehub.training.trainable import Trainable


class DenseModel(Trainable):
    """A task model whose trainable parameters are `values` (a float32 change of every entry in scope) and the head.

    The arena holds base + values whenever nothing else is said: subclasses may put something else there for a forward
    pass (`before_forward`), shape the gradient (`through`) and the values after a step (`after_step`).

    names: the parameters in scope; budget: entries that `delta` may hold.
    """

    def __init__(self, task_model: TaskModel, names: Iterable[str], budget: int):
        super().__init__(task_model)
        self._names, self._budget = list(names), budget
        slots = self._arena.slots
        self.slices = slices({name: slots[name].numel for name in self._names})
        self.base = torch.cat([self._flat(name) for name in self._names]).float()
        self.values = nn.Parameter(torch.zeros_like(self.base))
        self._hooks = Hooks(task_model)
        for name in self._names:
            self._hooks.add(name, self._adder(self.slices[name]))
        self.leave_to_us(not_the_head(self))

    def _flat(self, name: str) -> Tensor:
        return self._arena.view(name).view(-1)

    def _adder(self, place: slice) -> Any:
        def add_and_free(parameter: Tensor) -> None:
            assert parameter.grad is not None  # torch calls this hook only after it has accumulated one
            self.through(parameter.grad.reshape(-1), place)
            parameter.grad = None

        return add_and_free

    def through(self, gradient: Tensor, place: slice) -> None:
        """Take the gradient of the weights at `place` on to what is trained."""
        self.gradient()[place] += gradient

    def gradient(self) -> Tensor:
        """The gradient of the values, zero where none has come yet."""
        if self.values.grad is None:
            self.values.grad = torch.zeros_like(self.values)
        return self.values.grad

    def own(self) -> dict[str, nn.Parameter]:
        return {"values": self.values}

    def unsynchronised(self) -> list[Tensor]:
        return [self.gradient()]

    def before_forward(self, *, learning: bool) -> None:
        """Called before each forward pass. learning: whether a backward pass will follow."""

    def forward(self, **batch: Tensor) -> Any:
        self.before_forward(learning=self.training and torch.is_grad_enabled())
        return super().forward(**batch)

    @torch.no_grad()
    def write(self) -> None:
        self.put(lambda place: self.values[place])

    def put(self, change_at: Callable[[slice], Tensor]) -> None:
        """Put base + change into the arena, a parameter at a time; summed in float32, rounded once."""
        for name, place in self.slices.items():
            weights = self._flat(name)
            if weights.dtype == torch.float32:
                torch.add(self.base[place], change_at(place), out=weights)
            else:
                weights.copy_(self.base[place] + change_at(place))

    @torch.no_grad()
    def clear(self) -> None:
        self.values.zero_()
        for name, place in self.slices.items():
            self._flat(name).copy_(self.base[place])
        self._hooks.remove()

    def changes(self) -> dict[str, Tensor]:
        """By parameter name, the flat change of its weights."""
        return {name: self.values[place].detach() for name, place in self.slices.items()}

    def delta(self, value_dtype: str) -> Delta:
        """The largest changes that the budget admits, and `kept`: what share of the squared norm they are."""
        changes = {name: finite(values) for name, values in self.changes().items()}
        shapes = {name: self._arena.slots[name].shape for name in changes}
        found = cut(shapes, changes.__getitem__, self._budget, value_dtype)
        self.kept = found.kept
        return found.delta
