"""Task heads for the engine, linear ones and transformers' own, run on outputs that the backbone has computed."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsehub.backbone import Backbone
from sparsehub.errors import FormatError
from sparsehub.package.linear_head import LinearHead, run_linear
from sparsehub.package.task_model import auto_class, base_prefix, task_config
from sparsehub.package.task_spec import LINEAR, TaskSpec


class _StandIn(nn.Module):
    """Stands in for the base model inside a task's model: returns outputs that were computed before."""

    pooler: nn.Module | None

    def __init__(self, pooler: nn.Module | None):
        super().__init__()
        self.pooler = pooler
        self.outputs: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        if self.pooler is None:
            return self.outputs
        outputs = copy.copy(self.outputs)
        outputs.pooler_output = self.pooler(outputs.last_hidden_state)
        return outputs


# By backbone: one model for each shape of head that was loaded on it (see `_template`).
_TEMPLATES: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], nn.Module]] = weakref.WeakKeyDictionary()


class HeadModel:
    """A task's head, callable: transformers' task model with a stand-in for its backbone.

    Heads with equal `alike` can run together (`run_heads`): they are copies of one template, and all their weights
    belong to Linear modules.
    """

    pooling: str | None = None  # what it reads of the backbone's states is its own code's

    def __init__(self, model: nn.Module, stand_in: _StandIn, template: nn.Module):
        self._model, self._stand_in = model, stand_in
        self.linears = [module for module in model.modules() if type(module) is nn.Linear]
        covered = sum(parameter.nbytes for linear in self.linears for parameter in linear.parameters())
        # The number of Linears differs within a template: a head may or may not bring a pooler of its own.
        self.alike = (id(template), len(self.linears)) if covered == self.nbytes else (id(self), 0)

    def __call__(self, inputs: Mapping[str, Tensor], outputs: Any) -> Tensor:
        """Logits of the rows. inputs: the batch as the backbone saw it; outputs: what the backbone returned."""
        self._stand_in.outputs = outputs
        try:
            return self._model(**inputs).logits
        finally:
            self._stand_in.outputs = None

    @property
    def nbytes(self) -> int:
        """Bytes of the head's parameters."""
        return sum(parameter.nbytes for parameter in self.parameters)

    @property
    def parameters(self) -> list[Tensor]:
        """The head's own parameters, on the backbone's device."""
        return list(self._model.parameters())


Head = HeadModel | LinearHead


def run_heads(heads: Sequence[Head], counts: Sequence[int], inputs: Mapping[str, Tensor], outputs: Any) -> Tensor:
    """Logits of the rows of several tasks whose heads are alike. counts: sequences of each head, in order.

    The first head's code runs once for all rows, with each task's own weights: a small head spends most of its time in
    Python, not in its products. Linear heads are one product.
    """
    if isinstance(heads[0], LinearHead):
        return run_linear(cast("Sequence[LinearHead]", heads), counts, inputs, outputs)
    models = cast("Sequence[HeadModel]", heads)
    if len(models) == 1:
        return models[0](inputs, outputs)
    with _each_its_own(models, counts):
        return models[0](inputs, outputs)


@contextmanager
def _each_its_own(heads: Sequence[HeadModel], counts: Sequence[int]) -> Iterator[None]:
    """While it is open, every Linear of the first head multiplies each head's rows with that head's weights."""
    try:
        for same in zip(*(head.linears for head in heads), strict=True):
            # Set past nn.Module's __setattr__, which would look for parameters and hooks first.
            same[0].__dict__["forward"] = functools.partial(_rows_of_each, same, counts)
        yield
    finally:
        for linear in heads[0].linears:
            linear.__dict__.pop("forward", None)


def _rows_of_each(linears: Sequence[nn.Linear], counts: Sequence[int], x: Tensor) -> Tensor:
    parts = zip(linears, x.split(list(counts)), strict=True)
    return torch.cat([functional.linear(part, linear.weight, linear.bias) for linear, part in parts])


def build_head(backbone: Backbone, task: TaskSpec, tensors: Mapping[str, Tensor], pad_token_id: int) -> Head:
    """The head of a task on a backbone, with the tensors of its package.

    Raises `FormatError` where the tensors are not those of the task's model, or too large for the backbone's dtype.
    """
    if task.head.type == LINEAR:
        return LinearHead(task, tensors, backbone.config.hidden_size, backbone.device)
    template = _template(backbone, task, pad_token_id)
    model = _copy_of(template)
    prefix = base_prefix(model)
    stand_in = _StandIn(_own_pooler(getattr(model, prefix[:-1]), prefix, tensors))
    setattr(model, prefix[:-1], stand_in)
    head = {name: tensor.to(backbone.device, backbone.dtype, copy=True) for name, tensor in tensors.items()}
    _refuse_overflow(head)
    try:
        model.load_state_dict(head, strict=True, assign=True)
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise FormatError("the head does not fit the task's model", found=problem[:500]) from error
    return HeadModel(model.eval(), stand_in, template)


def _refuse_overflow(head: Mapping[str, Tensor]) -> None:
    for name, tensor in head.items():
        if not bool(tensor.isfinite().all()):
            raise FormatError(
                f"the head's {name!r} is larger than {tensor.dtype} can hold",
                expected=f"at most {torch.finfo(tensor.dtype).max:g}",
                fix="load the backbone with dtype bfloat16 or float32",
            )


def _template(backbone: Backbone, task: TaskSpec, pad_token_id: int) -> nn.Module:
    """A task's model on the meta device, from which heads are copied.

    transformers takes longer to build one than the rest of a task's load takes, so one of each shape is kept.
    """
    kept = _TEMPLATES.setdefault(backbone.module, {})
    shape = (task.kind, task.num_outputs, task.problem_type, pad_token_id)
    if shape not in kept:
        with torch.device("meta"):
            kept[shape] = auto_class(task.kind).from_config(
                task_config(backbone.config, task, pad_token_id), trust_remote_code=False
            )
    return kept[shape]


def _copy_of(template: nn.Module) -> nn.Module:
    """A copy to be changed. It shares the base model, which a head does not need, but not the pooler, which it may."""
    base = getattr(template, base_prefix(template)[:-1])
    shared = {id(module): module for name, module in base.named_children() if name != "pooler"}
    return copy.deepcopy(template, dict(shared))


def _own_pooler(base: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    inside = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if any(not name.startswith("pooler.") for name in inside):
        raise FormatError("the head holds parameters from inside the backbone", found=", ".join(sorted(inside))[:300])
    pooler = getattr(base, "pooler", None)
    return pooler if inside and isinstance(pooler, nn.Module) else None
