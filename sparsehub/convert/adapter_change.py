"""What a PEFT adapter changes in a backbone, from its files alone.

LoRA: W = W0 + s B A, s = alpha / r (alpha / sqrt(r) where `use_rslora`). SHiRA and Supertuning are sparse already.
What has no weight of the backbone to stand in is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.convert.adapters import CONFIG_FILE, DTYPE_KEY, NNZ_KEY, Adapter
from sparsehub.convert.lora_options import MERGE
from sparsehub.convert.name_matching import SHOWN, CheckpointLayout, match_layout
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.errors import BackboneMismatchError, FormatError, UsageError

RANK = ALPHA = 8  # what PEFT takes where adapter_config.json says nothing


@dataclass(frozen=True)
class Change:
    """What an adapter changes in a backbone, and its head."""

    shapes: Mapping[str, tuple[int, ...]]  # of the changed parameters, by name
    change_of: Callable[[str], Tensor]  # a parameter's name to its dense change
    sparse: Delta | None  # the same as a delta, for an adapter that is sparse
    whole: Mapping[str, Tensor]  # tensors that it stores whole, by their names in the task's model: its head
    parts: Mapping[str, Mapping[str, Tensor]]  # the adapter's own matrices, by the parameter that they change


def change_of(adapter: Adapter, layout: CheckpointLayout) -> Change:
    """The adapter as a change of the backbone that `layout` describes; raises where a tensor has no place there."""
    _refuse_tied(adapter, layout)
    places = match_layout(layout, adapter.parts, str(adapter.folder))
    owner = {stored: name for name, stored in places.names.items()}
    _refuse_unplaced(adapter, adapter.parts.keys() - owner.keys())
    mine = {owner[stored]: tensors for stored, tensors in adapter.parts.items()}
    whole = _whole(adapter, layout, places.prefix)
    shapes = {name: layout.base[name] for name in sorted(mine)}
    if adapter.kind == "LORA":
        products = {name: _Product(adapter, name, mine[name], places.names[name]) for name in mine}
        return Change(shapes, lambda name: products[name].dense(layout), None, whole, mine)
    delta = _sparse(adapter, mine, shapes)
    return Change(shapes, lambda name: _dense(delta, name), delta, whole, mine)


def _refuse_unplaced(adapter: Adapter, names: Collection[str]) -> None:
    if names:
        raise BackboneMismatchError(
            f"{adapter.folder} changes what this backbone does not have",
            found=", ".join(sorted(names)[:SHOWN]),
            fix="give the backbone and the --kind that the adapter was trained for",
        )


def _refuse_tied(adapter: Adapter, layout: CheckpointLayout) -> None:
    """A tied weight changes in one of its two places while PEFT trains, and in both once it is merged."""
    for group in ((name, *others) for name, others in layout.aliases.items() if others):
        for name in group:
            if any(f".{stored}".endswith(f".{name}") for stored in adapter.parts):
                raise UsageError(
                    f"{adapter.folder} changes {name!r}, which the backbone shares with "
                    f"{next(other for other in group if other != name)!r}: "
                    "what was trained in one place would change in both",
                    fix="train the adapter without the embedding and the output layer",
                )


def _whole(adapter: Adapter, layout: CheckpointLayout, prefix: str) -> dict[str, Tensor]:
    """The tensors that are stored whole (`modules_to_save`), by their names in the task's model."""
    around = prefix.removesuffix(layout.prefix)
    names = {around + name: name for name in (*layout.others, *layout.around)}
    names |= {around + layout.prefix + name: layout.prefix + name for name in layout.base if name not in layout.around}
    unknown = [name for name in adapter.rest if name not in names]
    if unknown:
        raise UsageError(
            f"{adapter.folder} holds tensors that are neither an adapter's nor the head's",
            found=", ".join(unknown[:SHOWN]),
            fix=MERGE,
        )
    return {names[name]: tensor for name, tensor in adapter.rest.items()}


@dataclass(frozen=True)
class _Product:
    """s B A for one weight."""

    adapter: Adapter
    name: str  # of the weight
    parts: Mapping[str, Tensor]
    stored: str  # the weight's name as the adapter says it, which its patterns are about

    def dense(self, layout: CheckpointLayout) -> Tensor:
        kind = "lora_embedding" if "lora_embedding_A" in self.parts else "lora"
        try:
            a, b = self.parts[f"{kind}_A"].float(), self.parts[f"{kind}_B"].float()
            product = b @ a
        except (KeyError, RuntimeError) as error:
            raise FormatError(f"the LoRA of {self.name!r} is not two matrices that fit together") from error
        if kind == "lora_embedding" or self.name in layout.transposed:
            product = product.T
        if tuple(product.shape) != layout.base[self.name]:
            raise BackboneMismatchError(
                f"the LoRA of {self.name!r} is for another shape",
                found=tuple(product.shape),
                expected=layout.base[self.name],
            )
        return product * self._scaling(rank=a.shape[0])

    def _scaling(self, rank: int) -> float:
        config = self.adapter.config
        stated = self._setting("rank_pattern", "r", RANK)
        if stated != rank:
            raise FormatError(
                f"the LoRA of {self.name!r} has another rank than {CONFIG_FILE} says", found=rank, expected=stated
            )
        alpha = self._setting("alpha_pattern", "lora_alpha", ALPHA)
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    def _setting(self, patterns: str, key: str, default: int) -> float:
        """PEFT's rule: a pattern is a module's name, the end of one, or a regular expression; the first one counts."""
        config = self.adapter.config
        module = self.stored.removesuffix(".weight")
        try:
            for pattern, value in (config.get(patterns) or {}).items():
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return float(value)
            return float(config.get(key, default))
        except (re.error, TypeError, ValueError, AttributeError) as error:
            found = f"{patterns}: {config.get(patterns)}, {key}: {config.get(key)}"[:200]
            raise FormatError(f"{CONFIG_FILE} in {self.adapter.folder} is malformed", found=found) from error


def _sparse(adapter: Adapter, mine: Mapping[str, Mapping[str, Tensor]], shapes: Mapping[str, tuple[int, ...]]) -> Delta:
    kept = json.loads(adapter.metadata.get(NNZ_KEY, "{}"))
    parts = {}
    for name, tensors in mine.items():
        positions, values = (_shira if adapter.kind == "SHIRA" else _supertuning)(adapter, name, tensors, shapes[name])
        used = int(kept.get(name, len(positions)))  # our own export pads: see `shira`
        order = positions[:used].sort()
        parts[name] = ParameterDelta(shapes[name], order.values, values[:used].float()[order.indices])
        if bool((order.values.diff() <= 0).any()):
            raise FormatError(f"{name!r} in {adapter.folder} changes an entry twice")
    return Delta(parts, "add", adapter.metadata.get(DTYPE_KEY, "float32"))


def _shira(adapter: Adapter, name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    if set(tensors) != {"shira_weight", "shira_indices"}:
        raise FormatError(f"{name!r} in {adapter.folder} lacks its indices or its values")
    indices, values = tensors["shira_indices"].long(), tensors["shira_weight"]
    if indices.shape != (2, len(values)):
        raise FormatError(f"{name!r} in {adapter.folder}: as many indices as values", found=tuple(indices.shape))
    rows, columns = indices
    if len(shape) != 2 or bool((rows < 0).any() or (columns < 0).any() or (rows >= shape[0]).any()):
        raise FormatError(f"{name!r} in {adapter.folder}: an index is out of range", expected=shape)
    if bool((columns >= shape[1]).any()):
        raise FormatError(f"{name!r} in {adapter.folder}: an index is out of range", expected=shape)
    return rows * shape[1] + columns, values


def _supertuning(
    adapter: Adapter, name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    if "supertuning_indices" not in tensors:
        raise UsageError(
            f"{adapter.folder} does not say which entries it changes",
            fix="save it from a config with save_precomputed_indices=True",
        )
    positions, values = tensors["supertuning_indices"].long(), tensors.get("supertuning_values")
    if values is None or positions.shape != values.shape:
        raise FormatError(f"{name!r} in {adapter.folder}: as many indices as values", found=tuple(positions.shape))
    if bool((positions < 0).any() or (positions >= math.prod(shape)).any()):
        raise FormatError(f"{name!r} in {adapter.folder}: an index is out of range", expected=math.prod(shape))
    return positions, values


def _dense(delta: Delta, name: str) -> Tensor:
    part = delta.parameters[name]
    flat = torch.zeros(part.numel)
    flat[part.indices] = part.values
    return flat.view(part.shape)
