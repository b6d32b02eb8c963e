"""Training the selected entries alone: hooks gather their gradients and free the dense ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.delta import Delta, ParameterDelta
from sparsehub.errors import DataError
from sparsehub.kernels import gather, scatter_copy_
from sparsehub.package.task_model import TaskModel
from sparsehub.selection.largest import survives
from sparsehub.training.sampled_gradients import SampledLinears
from sparsehub.training.trainable import Trainable


class SparseModel(Trainable):
    """A task model whose trainable parameters are `values` (one float32 per selected entry) and the head.

    The arena always holds base + values.

    mask: by parameter name, sorted flat int64 positions; start: by parameter name, the values to begin with, all zero
    where it is left out; sampled: compute gradients of Linear weights at their positions alone, on a CPU in float32.
    """

    def __init__(
        self,
        task_model: TaskModel,
        mask: Mapping[str, Tensor],
        start: Mapping[str, Tensor] | None = None,
        *,
        sampled: bool = False,
    ):
        super().__init__(task_model)
        device = task_model.backbone.device
        self._mask = {name: mask[name].to(device) for name in sorted(mask)}
        self._base = {name: gather(self._flat(name), p).float() for name, p in self._mask.items()}
        self._slices = slices({name: len(positions) for name, positions in self._mask.items()})
        self.values = nn.Parameter(torch.zeros(sum(map(len, self._mask.values())), device=device))
        self._hooks = Hooks(task_model)
        for name in self._mask:
            self._hooks.add(name, self._gatherer(name))
        sinks = {name: self._adder(place) for name, place in self._slices.items()} if sampled else {}
        backbone = task_model.backbone
        self._sampled = SampledLinears(
            backbone.whole, backbone.parameters, self._mask if sampled else {}, sinks, self.values
        )
        self._embeddings = [m for m in backbone.module.modules() if isinstance(m, nn.Embedding)]
        for embedding in self._embeddings:
            embedding.sparse = True  # a gradient of the rows that were used, not of the whole vocabulary
        self.leave_to_us(not_the_head(self))
        if start is not None:
            self._begin_with(start)

    def _flat(self, name: str) -> Tensor:
        return self._arena.view(name).view(-1)

    @torch.no_grad()
    def _begin_with(self, start: Mapping[str, Tensor]) -> None:
        for name, place in self._slices.items():
            self.values[place] = start[name].to(self.values)
        self.write()

    def _gatherer(self, name: str) -> Any:
        add = self._adder(self._slices[name])

        def gather_and_free(parameter: Tensor) -> None:
            if parameter.grad is not None:  # a sampled layer leaves none: torch calls the hook all the same
                self.saw(name, parameter.grad)
                add(gradient_at(parameter.grad, self._mask[name]))
                parameter.grad = None

        return gather_and_free

    def saw(self, name: str, gradient: Tensor) -> None:
        """Called with a parameter's whole gradient before it is freed, once a backward pass."""

    def _adder(self, place: slice) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            if self.values.grad is None:
                self.values.grad = torch.zeros_like(self.values)
            self.values.grad[place] += gradient

        return add

    def own(self) -> dict[str, nn.Parameter]:
        return {"values": self.values}

    def unsynchronised(self) -> list[Tensor]:
        if self.values.grad is None:  # a process whose batch reached no entry still has to take part in the sum
            self.values.grad = torch.zeros_like(self.values)
        return [self.values.grad]

    @torch.no_grad()
    def write(self) -> None:
        """Put base + values into the arena; summed in float32, rounded once."""
        for name, place in self._slices.items():
            total = self._base[name] + self.values[place]
            scatter_copy_(self._flat(name), self._mask[name], total.to(self._flat(name).dtype))

    @torch.no_grad()
    def clear(self) -> None:
        self.values.zero_()
        self.write()
        self._hooks.remove()
        self._sampled.remove()
        for embedding in self._embeddings:
            embedding.sparse = False

    def delta(self, value_dtype: str) -> Delta:
        """The trained change, without the entries that ended where they began; raises `DataError` if it diverged."""
        parts = {}
        for name, place in self._slices.items():
            values = finite(self.values[place].detach().cpu())
            kept = survives(values, value_dtype)
            if bool(kept.any()):
                shape = self._arena.slots[name].shape
                parts[name] = ParameterDelta(shape, self._mask[name].cpu()[kept], values[kept].clone())
        return Delta(parts, "add", value_dtype)


class Hooks:
    """What looks at the gradients of a backbone's parameters; while it does, they have gradients."""

    def __init__(self, task_model: TaskModel):
        self._parameters = task_model.backbone.parameters
        self._handles: list[tuple[nn.Parameter, Any]] = []

    def add(self, name: str, hook: Callable[[Tensor], None]) -> None:
        """Call `hook` with the parameter whenever its gradient is complete."""
        parameter = self._parameters[name]
        parameter.requires_grad_(True)
        self._handles.append((parameter, parameter.register_post_accumulate_grad_hook(hook)))

    def remove(self) -> None:
        for parameter, handle in self._handles:
            handle.remove()
            parameter.requires_grad_(False)
        self._handles.clear()


def slices(lengths: Mapping[str, int]) -> dict[str, slice]:
    """Where each name's part lies in one flat vector."""
    found, start = {}, 0
    for name, length in lengths.items():
        found[name] = slice(start, start + length)
        start += length
    return found


def not_the_head(model: Trainable) -> list[str]:
    """Names of every parameter of a wrapper but the head's: those whose gradients the wrapper looks after itself."""
    heads = {id(parameter) for parameter in model.head.values()}
    return [name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) not in heads]


def gradient_at(gradient: Tensor, positions: Tensor) -> Tensor:
    """A parameter's gradient at flat positions; an embedding's may be sparse: of the rows that were used alone."""
    if not gradient.is_sparse:
        return gather(gradient.reshape(-1), positions)
    gradient = gradient.coalesce()
    rows, width = gradient.indices()[0], gradient.shape[1]
    if len(rows) == 0:
        return torch.zeros(len(positions), dtype=gradient.dtype, device=gradient.device)
    wanted = positions // width
    places = torch.searchsorted(rows, wanted).clamp(max=len(rows) - 1)
    found = gradient.values()[places, positions % width]
    return torch.where(rows[places] == wanted, found, torch.zeros_like(found))


def finite(values: Tensor) -> Tensor:
    """The same values; raises `DataError` where training has left something that is no number."""
    if not bool(torch.isfinite(values).all()):
        raise DataError("training diverged: values are not finite", fix="lower --learning-rate or --clip")
    return values
