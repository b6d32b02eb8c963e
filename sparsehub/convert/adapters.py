"""PEFT adapters as their files hold them: LoRA, SHiRA, Supertuning. No model is loaded.

What an adapter changes in a backbone is `adapter_change`'s business; which options are supported, `lora_options`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsehub.convert.lora_options import CHECKS, MERGE
from sparsehub.convert.wrapped_names import unwrapped, wrapper_note
from sparsehub.errors import FormatError, UsageError
from sparsehub.files import sha256_file, strict_json
from sparsehub.tensorfile import load_tensors, read_header

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
NNZ_KEY, DTYPE_KEY = "sparsehub.nnz", "sparsehub.value_dtype"  # of the file's metadata, where we wrote it
INSIDE = "base_model.model."
_ENDS = {
    "LORA": "lora_A|lora_B|lora_embedding_A|lora_embedding_B",
    "SHIRA": "shira_weight|shira_indices",
    "SUPERTUNING": "supertuning_values|supertuning_indices",
}
# A tensor of an adapter: the module, which of its matrices, and the adapter's name where the model's own state dict was
# saved in place of PEFT's.
_PART = re.compile(rf"(.+)\.({'|'.join(_ENDS.values())})(?:\.(?!weight$|bias$)([^.]+))?(?:\.weight)?")
_SAVED = re.compile(r"(.+)\.modules_to_save\.([^.]+)\.(.+)")


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter's files, read and validated."""

    folder: Path
    kind: str  # PEFT's `peft_type`
    config: Mapping[str, Any]  # adapter_config.json
    parts: Mapping[
        str, Mapping[str, Tensor]
    ]  # by the name of a weight, such as `...query.weight`: its matrices by name
    rest: Mapping[str, Tensor]  # everything else by name, without PEFT's own prefix: the head, or weights stored beside
    metadata: Mapping[str, str]  # of the weights file
    notes: tuple[str, ...] = ()  # what was unusual about its names, for the report

    @property
    def digest(self) -> str:
        """The sha256 of its weights file."""
        return sha256_file(self.folder / WEIGHTS_FILE)


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT adapter folder.

    Raises `FormatError`, and `UsageError` for a method or an option that is more than a change of weights.
    """
    config = strict_json((folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
    if not isinstance(config, dict):
        raise FormatError(f"{CONFIG_FILE} in {folder} is not an object")
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
    CHECKS[kind](config)
    tensors, seen = unwrapped(load_tensors(weights), str(weights))
    parts, rest, names = _sorted_out({name.removeprefix(INSIDE): tensor for name, tensor in tensors.items()})
    _check_one(folder, kind, parts, names)
    raw = f"names with the adapter's name in them ({', '.join(names)}), of a raw state dict, were read without it"
    notes = (*wrapper_note(seen), *([raw] if names else ()))
    return Adapter(folder, kind, config, parts, rest, read_header(weights).metadata, notes)


def _sorted_out(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], tuple[str, ...]]:
    """Matrices by the weight that they change, all other tensors by name, and the names of adapters inside names."""
    parts: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    names: set[str] = set()
    for name, tensor in tensors.items():
        if found := _PART.fullmatch(name):
            parts.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor
            names |= {found[3]} if found[3] else set()
        elif saved := _SAVED.fullmatch(name):
            rest[f"{saved[1]}.{saved[3]}"] = tensor
            names.add(saved[2])
        elif ".original_module." not in name:  # the head as it was before training
            rest[name.replace(".base_layer.", ".")] = tensor
    return parts, rest, tuple(sorted(names))


def _check_one(folder: Path, kind: str, parts: Mapping[str, Iterable[str]], names: tuple[str, ...]) -> None:
    """Raises unless these are the tensors of one adapter of one method."""
    ends = {end for found in parts.values() for end in found}
    kinds = [other for other, known in _ENDS.items() if ends & set(known.split("|"))]
    if kind not in kinds:
        raise FormatError(f"{folder} changes nothing", found=f"no tensor of {kind}")
    if len(kinds) > 1:
        raise UsageError(f"{folder} is a hybrid: it changes weights in two ways", found=" and ".join(kinds), fix=MERGE)
    if len(names) > 1:
        fix = f"save one of them alone: save_pretrained(folder, selected_adapters=[{names[0]!r}])"
        raise UsageError(f"{folder} holds several adapters", found=", ".join(names), expected="one", fix=fix)
