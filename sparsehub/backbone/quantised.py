"""What a checkpoint's files say of how its weights were quantised: the method, and what its identity covers then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsehub.backbone.gguf_file import find_gguf
from sparsehub.errors import BackboneError, FormatError
from sparsehub.files import canonical_json, sha256_bytes, strict_json

BITSANDBYTES, COMPRESSED_TENSORS, FP8, GGUF, TORCHAO = "bitsandbytes", "compressed-tensors", "fp8", "gguf", "torchao"
_FIELD = "quantization_config"


@dataclass(frozen=True)
class Quantisation:
    """How a checkpoint's weights were quantised."""

    method: str  # as transformers calls it: fp8, bitsandbytes, torchao, compressed-tensors, gguf, gptq, ...
    settings: Mapping[str, Any]  # all that is said of it; the same stored values are other weights with others


def quantisation_of(folder: Path) -> Quantisation | None:
    """What a checkpoint's configuration says; None for weights that are plain numbers. Raises `BackboneError`."""
    if find_gguf(folder) is not None:
        return Quantisation(GGUF, {})  # the file's header says the rest
    try:
        config = strict_json((folder / "config.json").read_bytes(), "config.json")
    except (OSError, FormatError):
        return None  # whoever needs the configuration says what is wrong with it
    settings = _settings(config) if isinstance(config, dict) else {}
    methods = sorted({_method(said, folder) for said in settings.values()})
    if len(methods) > 1:
        raise BackboneError(f"{folder} is quantised in several ways", found=", ".join(methods), expected="one")
    return Quantisation(methods[0], settings) if methods else None


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every quantisation that a configuration states, its own and those of the models inside, by where it stands."""
    places = {"": config, **{name: value for name, value in config.items() if isinstance(value, dict)}}
    return {place: table[_FIELD] for place, table in places.items() if table.get(_FIELD) is not None}


def _method(said: Any, folder: Path) -> str:
    if isinstance(said, dict):
        if said.get("load_in_4bit") or said.get("load_in_8bit"):
            return BITSANDBYTES  # older ones name no method
        if isinstance(said.get("quant_method"), str):
            return str(said["quant_method"])
    raise BackboneError(f"the {_FIELD} of {folder} names no method", found=str(said)[:200], expected="a quant_method")


def identity_line(quantisation: Quantisation, metadata: Mapping[str, str]) -> str:
    """What a fingerprint covers beside the stored tensors: the settings, and what the files' headers say of them."""
    said = {"settings": quantisation.settings, "metadata": dict(metadata)}
    return f"quantised {sha256_bytes(canonical_json(said))}\n"
