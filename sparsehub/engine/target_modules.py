"""Target modules: the modules of a backbone that mixed batches can change, found by watching one small forward pass.

A module is a target when its kind is one of those below and it sees its input row by row: then each row can have its
own task's change. A task that changes anything else runs by swap, and `TargetModules.why_not` says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone import Arena, Backbone, Slot
from sparsehub.engine.int8_matrix import Int8Base
from sparsehub.engine.layer_stack import BEFORE, LayerStack
from sparsehub.engine.packed_matrix import PackedBase
from sparsehub.kernels import ScaleShift
from sparsehub.kernels.sparse import ADDRESSES, NOTHING

LINEAR, CONV1D, EMBEDDING, LAYER_NORM, RMS_NORM = "Linear", "Conv1D", "Embedding", "LayerNorm", "RMSNorm"
_ROWS, _LENGTH = 3, 5  # of the watched pass: two numbers that differ from each other and from a model's usual sizes


@dataclass(frozen=True)
class TargetModule:
    """One module that mixed batches can change."""

    index: int  # its row in address tables
    name: str  # its dotted name in the model
    kind: str  # `LINEAR`, `CONV1D`, `EMBEDDING`, `LAYER_NORM` or `RMS_NORM`
    module: nn.Module
    base: ScaleShift | None = None  # a norm's own scale and shift, in float32; None for other kinds
    # the weight under which an RMSNorm only normalises; its scale is weight + 1 - neutral, since some models multiply
    # by 1 + weight
    neutral: Tensor | None = None
    epsilon: float | None = None  # of an RMSNorm that computes what the kernel does; None where its own code must run

    @cached_property
    def matrix(self) -> tuple[Tensor, Tensor | None]:
        """A Linear's or Conv1D's weight as [in, out], and its bias."""
        module: Any = self.module
        return module.weight.t() if self.kind == LINEAR else module.weight, module.bias

    def forget_matrix(self) -> None:
        """Look at the module anew: its weight has other memory."""
        vars(self).pop("matrix", None)


@dataclass(frozen=True)
class TargetModules:
    """The modules of a backbone that mixed batches can change, and why other places cannot be mixed."""

    targets: tuple[TargetModule, ...]  # by index
    uses: Mapping[Slot, tuple[tuple[TargetModule, str], ...]]  # by place of the arena: (target, `weight` or `bias`)
    others: Mapping[Slot, str]  # by place: why a change of it cannot be mixed
    # by a linear target: those that are called after it with the same input, as key and value are after query
    shared: Mapping[int, tuple[int, ...]]
    # the layers through which rows of one text may run once for several tasks; None where that was not proved, and why
    layers: LayerStack | None = None
    why_no_trunk: str | None = None
    # Quantised weights that mixed batches multiply by, of our own or a library's; then no row runs in another way.
    int8: Int8Base | None = None
    packed: PackedBase | None = None

    @property
    def quantised(self) -> Int8Base | PackedBase | None:
        """The quantised weights, where there are any."""
        return self.packed if self.int8 is None else self.int8

    @cached_property
    def sharing(self) -> frozenset[int]:
        """The linear targets that are called with the input of one before them."""
        return frozenset(index for others in self.shared.values() for index in others)

    @property
    def device(self) -> torch.device:
        """Where the modules compute."""
        module: Any = self.targets[0].module
        device: torch.device = module.weight.device
        return device

    @cached_property
    def after(self) -> Mapping[int, tuple[int, ...]]:
        """By every linear target that shares its input, the first of them or not, those that are called after it."""
        groups = [(first, *others) for first, others in self.shared.items()]
        return {index: group[place:] for group in groups for place, index in enumerate(group[:-1], 1)}

    @property
    def copies(self) -> list[Tensor]:
        """What was copied of the arena, for norms; `ArenaManager` looks at them."""
        bases = [tensor for target in self.targets if target.base is not None for tensor in target.base.tensors]
        return bases + [target.neutral for target in self.targets if target.neutral is not None]

    @torch.no_grad()
    def copy_again(self) -> None:
        """Copy the arena again, into the same memory, after the copies were damaged. It holds the base weights."""
        if self.quantised is not None:
            self.quantised.copy_again()  # first: norms are read from it
        for target in self.targets:
            if target.base is not None:
                if target.neutral is not None:
                    target.neutral.copy_(_neutral(target.module))
                fresh = _scale_shift(target.module, target.neutral)
                for mine, right in zip(target.base.tensors, fresh.tensors, strict=True):
                    mine.copy_(right)

    def base_addresses(self) -> Tensor:
        """[targets, ADDRESSES] int64 in host memory: the address table of a task that changes nothing. A norm always
        has a scale."""
        rows = [NOTHING if target.base is None else target.base.addresses for target in self.targets]
        return torch.tensor(rows, dtype=torch.int64).view(-1, ADDRESSES)

    def first_changed(self, touched: Collection[int]) -> int:
        """`LayerStack.first_changed`; `BEFORE` where rows share nothing. touched: indices of targets."""
        return BEFORE if self.layers is None else self.layers.first_changed(touched)

    def shares_layers(self, slots: set[Slot]) -> bool:
        """Whether rows of a task that changes these places share layers with rows of the same text for other tasks."""
        used = [target.index for slot in slots for target, _ in self.uses.get(slot, ())]
        return self.layers is not None and self.why_not(slots) is None and self.first_changed(used) > BEFORE

    def why_not(self, slots: set[Slot]) -> str | None:
        """Why a task that changes these places of the arena cannot be mixed; None where it can."""
        return next((self.others[slot] for slot in slots if slot in self.others), None)


def find_target_modules(backbone: Backbone) -> TargetModules:
    """Watch a pass of a few rows, and tell by it which modules a mixed batch can change (`mixing_check.py` proves it).

    The arena must hold the base weights.
    """
    calls, whole = _watch(backbone), backbone.whole
    seen = _shapes(calls)
    names = {id(module): name for name, module in whole.named_modules()}
    slots = {id(p): slot for name, p in backbone.parameters.items() if (slot := backbone.arena.slots.get(name))}
    targets: list[TargetModule] = []
    uses: dict[Slot, tuple[tuple[TargetModule, str], ...]] = {}
    others: dict[Slot, str] = {}
    for module in whole.modules():
        problem = _problem(module, seen.get(id(module), []))
        target = _target(len(targets), names[id(module)], module)
        owned = _places(slots, target)
        if problem is None and owned:
            targets.append(target)
        for slot, role in owned:
            if problem is None:
                uses[slot] = (*uses.get(slot, ()), (target, role))
            else:
                others[slot] = f"{target.name or 'the model'} ({type(module).__name__}) {problem}"
    return TargetModules(tuple(targets), uses, others, _shared(calls, targets))


def _target(index: int, name: str, module: Any) -> TargetModule:
    kind = kind_of(module) or ""
    if kind == RMS_NORM:
        neutral = _neutral(module)
        base = _scale_shift(module, neutral)
        return TargetModule(index, name, kind, module, base, neutral, _epsilon(module, base.weight))
    if kind == LAYER_NORM:
        return TargetModule(index, name, kind, module, _scale_shift(module, None))
    return TargetModule(index, name, kind, module)


def _scale_shift(norm: Any, neutral: Tensor | None) -> ScaleShift:
    """A norm's own scale and shift, copied in float32. neutral: of an RMSNorm, None of a LayerNorm."""
    if neutral is not None:
        return ScaleShift(norm.weight.detach().float() + 1 - neutral.float())
    bias = norm.bias
    return ScaleShift(norm.weight.detach().float().clone(), None if bias is None else bias.detach().float().clone())


def _neutral(norm: Any) -> Tensor:
    """Zeros where the norm multiplies by 1 + weight, ones where by weight."""
    zeros = torch.zeros_like(norm.weight)
    with torch.inference_mode(), with_weight(norm, zeros):
        counts_from_one = bool(type(norm).forward(norm, torch.ones_like(zeros)[None]).any())
    return zeros if counts_from_one else torch.ones_like(zeros)


def _epsilon(norm: Any, scale: Tensor) -> float | None:
    """The epsilon of an RMSNorm that is x / sqrt(mean of squares + epsilon) * scale, up to rounding; None of others."""
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(epsilon, float):
        return None
    # one row of usual size, and one so small that epsilon decides
    sizes = torch.tensor([[1.0], [epsilon**0.5]], device=scale.device)
    x = (torch.linspace(-1, 1, len(scale), device=scale.device) * sizes).to(norm.weight.dtype)
    with torch.inference_mode():
        found = type(norm).forward(norm, x)
    expected = torch.nn.functional.rms_norm(x.float(), (len(scale),), scale, epsilon)
    return epsilon if torch.allclose(found.float(), expected, rtol=4 * torch.finfo(x.dtype).eps, atol=1e-6) else None


@contextmanager
def with_weight(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """Inside, the module computes with another weight. Its parameter is left alone."""
    parameters: dict[str, Any] = module._parameters
    own = parameters["weight"]
    parameters["weight"] = weight
    try:
        yield
    finally:
        parameters["weight"] = own


def nothing_mixes(arena: Arena, reason: str) -> TargetModules:
    """The target modules of a backbone whose tasks all run by swap."""
    return TargetModules((), {}, dict.fromkeys(arena.slots.values(), reason), {}, None, reason)


def kind_of(module: nn.Module) -> str | None:
    """The kind of a module that mixed batches have a forward for; None for any other."""
    from transformers.pytorch_utils import Conv1D

    if type(module) is nn.Linear:
        return LINEAR
    if type(module) is Conv1D:
        return CONV1D
    if type(module) is nn.Embedding and module.max_norm is None:
        return EMBEDDING
    if type(module) is nn.LayerNorm and module.weight is not None and len(module.normalized_shape) == 1:
        return LAYER_NORM
    names = [name for name, _ in module.named_parameters()]
    if type(module).__name__.endswith("RMSNorm") and names == ["weight"] and module.weight.ndim == 1:
        return RMS_NORM
    return None


Calls = Sequence[tuple[nn.Module, Tensor]]


def _watch(backbone: Backbone) -> Calls:
    """Every call of a module in a pass of `_ROWS` rows, in order, and its first input."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def watch(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            calls.append((module, arguments[0]))

    handles = [module.register_forward_pre_hook(watch) for module in backbone.whole.modules()]
    try:
        with torch.inference_mode():
            backbone.whole(**sample_batch(backbone, _ROWS, _LENGTH))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _shapes(calls: Calls) -> dict[int, list[tuple[int, ...]]]:
    """The shapes of every module's inputs, by its id."""
    seen: dict[int, list[tuple[int, ...]]] = {}
    for module, x in calls:
        seen.setdefault(id(module), []).append(tuple(x.shape))
    return seen


def _shared(calls: Calls, targets: Sequence[TargetModule]) -> dict[int, tuple[int, ...]]:
    """`TargetModules.shared`: the linear targets that got the same input together in every call."""
    linear = {target.module: target.index for target in targets if target.kind in (LINEAR, CONV1D)}
    groups: dict[int, list[int]] = {}
    for module, x in calls:  # `calls` keeps the inputs alive, so no id is used twice
        if module in linear:
            groups.setdefault(id(x), []).append(linear[module])
    together = {tuple(group) for group in groups.values()}
    counts = Counter(index for group in together for index in group)
    return {group[0]: group[1:] for group in together if len(group) > 1 and all(counts[i] == 1 for i in group)}


def sample_batch(backbone: Backbone, rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """A batch of random token ids, for measuring and checking: `input_ids` and `attention_mask`, [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(backbone.config.vocab_size, (rows, length), generator=generator).to(backbone.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _problem(module: nn.Module, shapes: list[tuple[int, ...]]) -> str | None:
    """Why a module is no target; None where it is one. shapes: of its inputs in the watched pass."""
    if kind_of(module) is None:
        return "is of a kind that mixed batches do not know"
    if not shapes:
        return "is not called: its weights are used directly"
    rows = {shape[0] for shape in shapes}
    if rows == {_ROWS} or (kind_of(module) == EMBEDDING and rows == {1}):
        return None
    return "does not see its input row by row"


def _places(slots: Mapping[int, Slot], target: TargetModule) -> list[tuple[Slot, str]]:
    """The places of a module's own parameters in the arena, with the parameters' names. slots: by the parameters' ids,
    so that an output layer that is tied to the embedding has the embedding's place."""
    own = target.module.named_parameters(recurse=False)
    return [(slots[id(parameter)], name) for name, parameter in own if id(parameter) in slots]
