"""Training the selected entries alone: hooks gather their gradients and free the dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone import Arena, Backbone, Slot
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.errors import DataError
from sparsehub.kernels import gather, scatter_copy_
from sparsehub.package.model import TaskModel


class SparseModel(nn.Module):
    """A task model whose trainable parameters are `values` (one float32 per selected entry) and the head.

    The arena always holds base + values, so the wrapped model's forward pass is transformers' own. `state_dict` is the
    trainable part alone: a checkpoint of a run is as small as the package it will become.

    mask: by parameter name, sorted flat int64 positions.
    """

    accepts_loss_kwargs = False  # the Trainer then scales the loss by the accumulation steps itself

    def __init__(self, task_model: TaskModel, mask: Mapping[str, Tensor]):
        super().__init__()
        self.task = task_model.model
        self.config = task_model.backbone.config
        self.backbone: Backbone = task_model.backbone
        self._arena: Arena = task_model.backbone.arena
        self._mask = {name: mask[name].to(task_model.backbone.device) for name in sorted(mask)}
        self._head_names = task_model.head
        self._base = {name: gather(self._flat(name), p).float() for name, p in self._mask.items()}
        device = task_model.backbone.device
        self.values = nn.Parameter(torch.zeros(sum(map(len, self._mask.values())), device=device))
        self._slices = self._layout()
        parameters = dict(task_model.backbone.module.named_parameters(remove_duplicate=False))
        for name, positions in self._mask.items():
            parameters[name].requires_grad_(True)
            parameters[name].register_post_accumulate_grad_hook(self._gatherer(positions, self._slices[name]))
        for module in task_model.backbone.module.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = True  # a gradient of the rows that were used, not of the whole vocabulary

    def _flat(self, name: str) -> Tensor:
        return self._arena.view(name).view(-1)

    def _layout(self) -> dict[str, slice]:
        slices, start = {}, 0
        for name, positions in self._mask.items():
            slices[name] = slice(start, start + len(positions))
            start += len(positions)
        return slices

    def _gatherer(self, positions: Tensor, place: slice) -> Any:
        def gather_and_free(parameter: Tensor) -> None:
            if self.values.grad is None:
                self.values.grad = torch.zeros_like(self.values)
            assert parameter.grad is not None  # torch calls this hook only after it has accumulated one
            self.values.grad[place] += gradient_at(parameter.grad, positions)
            parameter.grad = None

        return gather_and_free

    def forward(self, **batch: Tensor) -> Any:
        return self.task(**batch)

    @property
    def head(self) -> dict[str, nn.Parameter]:
        parameters = dict(self.task.named_parameters())
        return {name: parameters[name] for name in self._head_names}

    def optimizer(
        self, *, learning_rate: float, head_learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """One AdamW over the values and the head. Decay acts on the values, so it pulls towards no change."""
        groups = [
            {"params": [self.values], "lr": learning_rate, "weight_decay": weight_decay},
            {"params": list(self.head.values()), "lr": head_learning_rate, "weight_decay": weight_decay},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
        optimizer.register_step_post_hook(lambda *_: self.write())
        return optimizer

    @torch.no_grad()
    def write(self) -> None:
        """Put base + values into the arena; summed in float32, rounded once."""
        for name, place in self._slices.items():
            total = self._base[name] + self.values[place]
            scatter_copy_(self._flat(name), self._mask[name], total.to(self._flat(name).dtype))

    @torch.no_grad()
    def clear(self) -> None:
        """Put the base weights back, bit for bit; the values are gone."""
        self.values.zero_()
        self.write()

    def delta(self, value_dtype: str) -> Delta:
        """The trained change, without the entries that ended where they began; raises `DataError` if it diverged."""
        parts = {}
        for name, place in self._slices.items():
            values = self.values[place].detach().cpu()
            if not bool(torch.isfinite(values).all()):
                raise DataError("training diverged: values are not finite", fix="lower --learning-rate or --clip")
            kept = _survives(values, value_dtype)
            if bool(kept.any()):
                shape = self._arena.slots[name].shape
                parts[name] = ParameterDelta(shape, self._mask[name].cpu()[kept], values[kept].clone())
        return Delta(parts, "add", value_dtype)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {"values": self.values.detach().clone(), **{n: p.detach().clone() for n, p in self.head.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:  # noqa: ARG002
        self.values.copy_(state["values"])
        for name, parameter in self.head.items():
            parameter.copy_(state[name])
        self.write()
        return nn.modules.module._IncompatibleKeys([], [])


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


def _survives(values: Tensor, value_dtype: str) -> Tensor:
    """Entries that are not zero once stored; int8 shares a scale among neighbours and keeps what float32 keeps."""
    stored = values if value_dtype == "int8" else values.to(getattr(torch, value_dtype))
    return stored != 0


def candidates(task_model: TaskModel) -> dict[str, Tensor]:
    """The backbone's parameters that may change, each place once (tied ones under their first name)."""
    seen: dict[Slot, str] = {}
    for name, slot in task_model.backbone.arena.slots.items():
        seen.setdefault(slot, name)
    return {name: task_model.backbone.arena.view(name) for name in seen.values()}
