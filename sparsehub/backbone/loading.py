"""transformers' `from_pretrained` of a checkpoint, for `load_module`: as it is stored, or from quantised to floats.

A quantised checkpoint is dequantised while it is loaded, so that its weights are an ordinary model's from there on:
they can be changed entry by entry, and every way of running is exact. The memory is that of the model in floats.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone.checkpoint import INDEX_FILE, WEIGHTS_FILE, Checkpoint, weight_files
from sparsehub.backbone.gguf_file import gguf_option
from sparsehub.backbone.quantised import BITSANDBYTES, COMPRESSED_TENSORS, FP8, GGUF, TORCHAO
from sparsehub.errors import BackboneError
from sparsehub.extras import require
from sparsehub.tensorfile import read_header

_OPTIONS = {"output_loading_info": True, "ignore_mismatched_sizes": True, "local_files_only": True}
_PACKED = ("I8", "U8", "F8_E4M3", "F8_E5M2")  # how safetensors calls what stands for weights by a scale
_SCALES = ("weight_scale", "weight_scale_inv", "weight.absmax", "SCB", "scale", "qscale_weight")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# What the libraries raise for settings and tensors that they cannot read; they come from elsewhere.
_FAILURES = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, ImportError,
             AssertionError)  # fmt: skip


def load_plain(auto: Any, checkpoint: Checkpoint, config: Any, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The model of a checkpoint of plain numbers, and transformers' report of its names; raises `BackboneError`."""
    if _said_by(config) is not None:
        raise BackboneError(f"the configuration of {checkpoint.id} says that it is quantised in a way that is not read")
    _refuse_unindexed(checkpoint)
    return auto.from_pretrained(checkpoint.folder, config=config, dtype=dtype, trust_remote_code=False, **_OPTIONS)


@torch.no_grad()
def load_dequantised(auto: Any, checkpoint: Checkpoint, config: Any, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The model of a quantised checkpoint with weights of `dtype`, and transformers' report of its names.

    Raises `BackboneError` for a method that cannot be dequantised here, `MissingExtraError` where its library is
    absent.
    """
    _refuse_method(checkpoint, _said_by(config) or {})
    _require_library(checkpoint.quantised)
    if checkpoint.quantised != GGUF:
        _refuse_unindexed(checkpoint)
        _refuse_bare_values(checkpoint)
    load = _by_its_own_class if checkpoint.quantised in (BITSANDBYTES, TORCHAO) else _while_loading
    try:
        return load(auto, checkpoint, config, dtype)
    except _FAILURES as error:
        raise BackboneError(
            f"{checkpoint.id} cannot be dequantised ({checkpoint.quantised})",
            found=str(error).strip()[:300] or type(error).__name__,
            fix="use the checkpoint it was quantised from, in float32, float16 or bfloat16",
        ) from error


def _while_loading(auto: Any, checkpoint: Checkpoint, config: Any, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The methods that transformers dequantises tensor by tensor, whatever the class is."""
    import transformers

    config, option = copy.deepcopy(config), dict[str, Any](gguf_option(checkpoint.folder))
    if option and hasattr(transformers, "GgufConfig"):  # older ones know no packed weights
        option["quantization_config"] = transformers.GgufConfig(dequantize=True)
    for part in _parts(config):
        if getattr(part, "quantization_config", None) is not None:
            part.quantization_config = {**part.quantization_config, "dequantize": True}
    model, info = auto.from_pretrained(
        checkpoint.folder, config=config, dtype=dtype, **option, trust_remote_code=False, **_OPTIONS
    )
    _make_plain(model, dtype)
    _forget_method(model)
    return model, info


def _by_its_own_class(auto: Any, checkpoint: Checkpoint, config: Any, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The methods whose layers transformers puts into a model as they were when it was saved, which it can only do for
    the class of that time: its weights are then those of any class."""
    model, info = _class_of(config).from_pretrained(
        checkpoint.folder, config=copy.deepcopy(config), dtype=dtype, trust_remote_code=False, **_OPTIONS
    )
    if checkpoint.quantised == BITSANDBYTES:
        model = model.dequantize(dtype)
    drawn = {*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])}
    weights = {name: _plain(tensor, dtype) for name, tensor in model.state_dict().items() if name not in drawn}
    del model
    config = copy.deepcopy(config)
    for part in _parts(config):
        vars(part).pop("quantization_config", None)
    with torch.device("meta"):
        wanted: Any = type(auto.from_config(config, trust_remote_code=False))
    return wanted.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, trust_remote_code=False, **_OPTIONS
    )


def _class_of(config: Any) -> Any:
    """The class of transformers that a checkpoint says it is of; raises `ValueError`."""
    import transformers

    name = str((getattr(config, "architectures", None) or [""])[0])
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"its configuration names no class of transformers in `architectures`, but {name!r}")
    return found


def _said_by(config: Any) -> Any:
    """What a configuration says of quantisation where transformers looks for it; None for plain numbers."""
    return next((said for part in _parts(config) if (said := getattr(part, "quantization_config", None))), None)


def _parts(config: Any) -> list[Any]:
    return [config, config.get_text_config(decoder=True)]


def _refuse_method(checkpoint: Checkpoint, said: Mapping[str, Any]) -> None:
    """Raises `BackboneError` for what would not be loaded, or would be loaded as other weights."""
    if checkpoint.quantised not in (BITSANDBYTES, COMPRESSED_TENSORS, FP8, GGUF, TORCHAO):
        raise BackboneError(
            f"{checkpoint.id} is quantised in a way that sparsehub does not turn back into floats",
            found=checkpoint.quantised,
            expected=f"{FP8}, {BITSANDBYTES}, {TORCHAO}, {COMPRESSED_TENSORS} or a GGUF file",
            fix="use the checkpoint it was quantised from, or one in such a format",
        )
    if checkpoint.quantised != COMPRESSED_TENSORS:
        return
    # transformers takes one group's settings for all layers, and knows none of weights that are sparse as well.
    sparse = (said.get("sparsity_config") or {}).get("format", "dense")
    if len(said.get("config_groups") or {}) != 1 or sparse != "dense":
        raise BackboneError(
            f"{checkpoint.id} is quantised differently from layer to layer",
            found=str({name: said.get(name) for name in ("config_groups", "sparsity_config")})[:300],
            expected=f"{COMPRESSED_TENSORS} with one group in config_groups, and no sparsity",
            fix="use the checkpoint it was quantised from",
        )


def _require_library(method: str | None) -> None:
    if method in (FP8, BITSANDBYTES, GGUF):
        require("accelerate", "quantised")
    if method == BITSANDBYTES:
        require("bitsandbytes", "quantised")
    elif method == TORCHAO:
        require("torchao", "quantised")
    elif method == COMPRESSED_TENSORS:
        require("compressed_tensors", "quantised")


def _make_plain(model: nn.Module, dtype: torch.dtype) -> None:
    """Tensors of a library's own class become plain ones, and floats of other widths `dtype`; what is neither stays,
    and is refused by its name. Tied parameters stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                stored = parameter.data
                plain = _plain(stored, dtype)
                made[parameter] = parameter if plain is stored else nn.Parameter(plain)
            setattr(module, name, made[parameter])


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if type(tensor) is not Tensor and hasattr(tensor, "dequantize"):
        tensor = tensor.dequantize()
    return tensor.to(dtype) if type(tensor) is Tensor and tensor.dtype in _FLOATS else tensor


def _forget_method(model: Any) -> None:
    """Take away by what transformers would quantise the model again when it saves it, or refuse to train it."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    model._weight_conversions = None
    for module in model.modules():
        vars(getattr(module, "config", model.config)).pop("_is_quantized", None)
        for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
            vars(module).pop(name, None)


def _refuse_bare_values(checkpoint: Checkpoint) -> None:
    """Raises `BackboneError` for packed values whose scale is not stored: some libraries take them for weights."""
    entries = {name: e for file in weight_files(checkpoint.folder) for name, e in read_header(file).entries.items()}
    for name, entry in entries.items():
        module = name.removesuffix("weight")
        if module != name and entry.dtype in _PACKED and not any(module + scale in entries for scale in _SCALES):
            raise BackboneError(
                f"{checkpoint.id} holds quantised values without a scale",
                found=f"{name} in {entry.dtype}",
                expected=f"one of {', '.join(module + scale for scale in _SCALES)}",
                fix="copy all files of the checkpoint",
            )


def _refuse_unindexed(checkpoint: Checkpoint) -> None:
    """Raises `BackboneError` for shards without their index, of which transformers loads nothing."""
    if not any((checkpoint.folder / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE)):
        raise BackboneError(
            f"{checkpoint.id} holds shards without their index",
            expected=INDEX_FILE,
            fix="copy the index too, or load and save the model once with transformers",
        )
