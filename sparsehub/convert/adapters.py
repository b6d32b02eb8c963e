"""PEFT adapters as changes of a backbone, from their files alone: LoRA, SHiRA, Supertuning. No model is loaded.

LoRA: W = W0 + s B A, s = alpha / r (alpha / sqrt(r) where `use_rslora`). SHiRA and Supertuning are sparse already.
What would change the meaning of those formulas, or has no weight of the backbone to stand in, is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsehub.convert.name_matching import SHOWN, CheckpointLayout, match_layout
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.errors import BackboneMismatchError, FormatError, UsageError
from sparsehub.files import sha256_file, strict_json
from sparsehub.tensorfile import load_tensors, read_header

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
NNZ_KEY, DTYPE_KEY = "sparsehub.nnz", "sparsehub.value_dtype"  # of the file's metadata, where we wrote it
INSIDE = "base_model.model."
# Settings with which a LoRA is more than W0 + s B A, and the values that leave it plain.
_PLAIN = {"use_dora": False, "bias": "none", "trainable_token_indices": None, "target_parameters": None,
          "alora_invocation_tokens": None, "corda_config": None, "arrow_config": None}  # fmt: skip
_ENDS = {
    "LORA": "lora_A|lora_B|lora_embedding_A|lora_embedding_B",
    "SHIRA": "shira_weight|shira_indices",
    "SUPERTUNING": "supertuning_values|supertuning_indices",
}


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter's files, read and validated."""

    folder: Path
    kind: str  # PEFT's `peft_type`
    config: Mapping[str, Any]  # adapter_config.json
    tensors: Mapping[str, Tensor]  # by their names without PEFT's own prefix
    metadata: Mapping[str, str]  # of the weights file

    @property
    def digest(self) -> str:
        """The sha256 of its weights file."""
        return sha256_file(self.folder / WEIGHTS_FILE)


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter folder; raises `FormatError` and `UsageError` for a method that is no change of weights."""
    config = strict_json((folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise FormatError(f"{folder} holds no {WEIGHTS_FILE}", fix="save the adapter with safe_serialization=True")
    kind = str(config.get("peft_type"))
    if kind not in _ENDS:
        raise UsageError(
            "this kind of adapter cannot become a package",
            found=kind,
            expected=", ".join(_ENDS),
            fix="merge it into its model with PEFT, save that, and extract from the checkpoint",
        )
    tensors = {name.removeprefix(INSIDE): tensor for name, tensor in load_tensors(weights).items()}
    return Adapter(folder, kind, config, tensors, read_header(weights).metadata)


@dataclass(frozen=True)
class Change:
    """What an adapter changes in a backbone, and its head."""

    shapes: Mapping[str, tuple[int, ...]]  # of the changed parameters, by name
    change_of: Callable[[str], Tensor]  # a parameter's name to its dense change
    sparse: Delta | None  # the same as a delta, for an adapter that is sparse
    head: Mapping[str, Tensor]  # the tensors that it trained outside the backbone


def change_of(adapter: Adapter, layout: CheckpointLayout) -> Change:
    """The adapter as a change of the backbone that `layout` describes; raises where a tensor has no place there."""
    parts: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in adapter.tensors.items():
        found = re.fullmatch(rf"(.+)\.({_ENDS[adapter.kind]})(\.weight)?", name)
        if found:
            parts.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor
        else:
            rest[name] = tensor
    if not parts:
        raise FormatError(f"{adapter.folder} changes nothing", found=f"no tensor of {adapter.kind}")
    places = match_layout(layout, parts, str(adapter.folder))
    owner = {stored: name for name, stored in places.names.items()}
    _refuse_unplaced(adapter, parts.keys() - owner.keys())
    mine = {owner[stored]: tensors for stored, tensors in parts.items()}
    head = _head(adapter, layout, rest, places.prefix)
    shapes = {name: layout.base[name] for name in sorted(mine)}
    if adapter.kind == "LORA":
        _refuse_unusual(adapter)
        return Change(shapes, lambda name: _product(adapter, layout, name, mine[name], places.names[name]), None, head)
    delta = _sparse(adapter, mine, shapes)
    return Change(shapes, lambda name: _dense(delta, name), delta, head)


def _refuse_unplaced(adapter: Adapter, names: Collection[str]) -> None:
    if names:
        raise BackboneMismatchError(
            f"{adapter.folder} changes what this backbone does not have",
            found=", ".join(sorted(names)[:SHOWN]),
            fix="give the backbone and the --kind that the adapter was trained for",
        )


def _head(adapter: Adapter, layout: CheckpointLayout, rest: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The modules that were trained whole (`modules_to_save`); raises `UsageError` where one is not the head's."""
    around = prefix.removesuffix(layout.prefix)
    names = {around + name: name for name in layout.others}
    names |= {around + layout.prefix + name: layout.prefix + name for name in layout.base}
    found = {names.get(name, ""): tensor for name, tensor in rest.items()}
    unknown = [name for name in rest if name not in names]
    inside = [name for name in found if name.startswith(layout.prefix)]
    if unknown or inside:
        raise UsageError(
            f"{adapter.folder} holds tensors that are neither an adapter's nor the head's",
            found=", ".join((unknown or inside)[:SHOWN]),
            fix="merge the adapter into its model with PEFT, save that, and extract from the checkpoint",
        )
    return found


def _refuse_unusual(adapter: Adapter) -> None:
    for key, plain in _PLAIN.items():
        if adapter.config.get(key, plain) not in (plain, False, None, [], {}):
            raise UsageError(
                f"a LoRA with {key} is more than a product of two matrices",
                found=f"{key}: {json.dumps(adapter.config[key])}"[:200],
                fix="merge it into its model with PEFT, save that, and extract from the checkpoint",
            )


def _product(adapter: Adapter, layout: CheckpointLayout, name: str, parts: Mapping[str, Tensor], stored: str) -> Tensor:
    kind = "lora_embedding" if "lora_embedding_A" in parts else "lora"
    try:
        a, b = parts[f"{kind}_A"].float(), parts[f"{kind}_B"].float()
        product = b @ a
    except (KeyError, RuntimeError) as error:
        raise FormatError(f"the LoRA of {name!r} is not two matrices that fit together") from error
    if kind == "lora_embedding" or name in layout.transposed:
        product = product.T
    if tuple(product.shape) != layout.base[name]:
        raise BackboneMismatchError(
            f"the LoRA of {name!r} is for another shape", found=tuple(product.shape), expected=layout.base[name]
        )
    return product * _scaling(adapter.config, stored.removesuffix(".weight"), rank=a.shape[0])


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank)))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule for `alpha_pattern`: a pattern is a module's name, the end of one, or a regular expression."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


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
    rows, columns = tensors["shira_indices"].long()
    if len(shape) != 2 or bool((rows < 0).any() or (columns < 0).any() or (rows >= shape[0]).any()):
        raise FormatError(f"{name!r} in {adapter.folder}: an index is out of range", expected=shape)
    if bool((columns >= shape[1]).any()):
        raise FormatError(f"{name!r} in {adapter.folder}: an index is out of range", expected=shape)
    return rows * shape[1] + columns, tensors["shira_weight"]


def _supertuning(
    adapter: Adapter, name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    if adapter.config.get("r") is not None:
        raise UsageError(
            "a Supertuning adapter with `r` has a low-rank part beside its sparse one",
            found=f"r: {adapter.config['r']}",
            fix="merge it into its model with PEFT, save that, and extract from the checkpoint",
        )
    if "supertuning_indices" not in tensors:
        raise UsageError(
            f"{adapter.folder} does not say which entries it changes",
            fix="save it from a config with save_precomputed_indices=True",
        )
    positions = tensors["supertuning_indices"].long()
    if bool((positions < 0).any() or (positions >= math.prod(shape)).any()):
        raise FormatError(f"{name!r} in {adapter.folder}: an index is out of range", expected=math.prod(shape))
    return positions, tensors["supertuning_values"]


def _dense(delta: Delta, name: str) -> Tensor:
    part = delta.parameters[name]
    flat = torch.zeros(part.numel)
    flat[part.indices] = part.values
    return flat.view(part.shape)
