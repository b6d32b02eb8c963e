"""Load a transformers model whose parameters are in an arena, with the identity of its checkpoint."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone.arena import Arena, build_arena
from sparsehub.backbone.checkpoint import Checkpoint, open_checkpoint
from sparsehub.backbone.configuration import computed_with
from sparsehub.backbone.gguf_file import gguf_option
from sparsehub.backbone.loading import load_dequantised, load_plain
from sparsehub.backbone.quantised import GGUF
from sparsehub.errors import BackboneError
from sparsehub.progress import work

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# How transformers calls the classes of causal language models.
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
_LEGACY = {".gamma": ".weight", ".beta": ".bias"}


@dataclass(frozen=True)
class Backbone:
    """The shared model, as training, extraction and the engine use it."""

    # transformers' base model; its parameters are views of `arena` (but see `engine/packed.py`)
    module: nn.Module
    arena: Arena
    checkpoint: Checkpoint  # which weights they are
    digests: Mapping[str, str]
    """By arena parameter: `sha256:...` of the stored tensor it was loaded from. A parameter of a quantised checkpoint
    is made of several tensors and of settings: there it is the fingerprint, which covers them all."""
    # The whole model around `module`, where the checkpoint is of a causal language model: its output layer is in the
    # arena too.
    language_model: nn.Module | None = None

    @property
    def whole(self) -> nn.Module:
        """The module that has every parameter of the arena: the language model where there is one."""
        return self.module if self.language_model is None else self.language_model

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by the name that the arena gives it, tied ones under each of their names."""
        found = dict(self.module.named_parameters(remove_duplicate=False))
        return found if self.language_model is None else {**found, **_around(self.language_model, self.module)}

    @property
    def config(self) -> Any:
        return self.module.config

    @functools.cached_property
    def configuration(self) -> Mapping[str, Any]:
        """The fields of the checkpoint's configuration that its forward pass depends on, for a package's record."""
        return computed_with(read_config(self.checkpoint))

    @property
    def architecture(self) -> str:
        return type(self.module).__name__

    @property
    def device(self) -> torch.device:
        """Where passes run; the arena is there too, but for an engine's quantised weights on a GPU."""
        return next(self.module.parameters()).device

    def digest_of(self, name: str) -> str:
        """The digest of the stored tensor behind an arena parameter; a tied name shares another name's tensor."""
        if name in self.digests:
            return self.digests[name]
        slot = self.arena.slots[name]
        return next(digest for other, digest in self.digests.items() if self.arena.slots[other] == slot)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most entries."""
        return max(self.arena.buffers.values(), key=Tensor.numel).dtype


def dtype_named(name: str) -> torch.dtype:
    """`float32`, `float16` or `bfloat16` as a torch dtype; raises `BackboneError`."""
    if name not in _DTYPES:
        near = difflib.get_close_matches(name, _DTYPES, n=1)
        fix = f"did you mean {near[0]!r}?" if near else None
        raise BackboneError("unknown dtype for the backbone", found=name, expected=", ".join(_DTYPES), fix=fix)
    return _DTYPES[name]


def load_backbone(
    reference: str | Path | Checkpoint, *, dtype: str = "float32", device: str = "cpu", revision: str | None = None
) -> Backbone:
    """Load any transformers encoder or decoder into an arena; in evaluation mode.

    reference: a folder, a hub id, or an open checkpoint; dtype: float32, float16 or bfloat16.

    A checkpoint of a causal language model keeps its output layer, so that it can generate.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    checkpoint = reference if isinstance(reference, Checkpoint) else open_checkpoint(str(reference), revision)
    if not is_language_model(checkpoint):
        module, missing = load_module(AutoModel, checkpoint, dtype=dtype, device=device)
        return adopt(module, checkpoint, missing)
    whole, missing = load_module(AutoModelForCausalLM, checkpoint, dtype=dtype, device=device)
    return adopt_language_model(whole, checkpoint, missing)


def read_config(checkpoint: Checkpoint) -> Any:
    """transformers' configuration of a checkpoint; raises `BackboneError`."""
    from transformers import AutoConfig

    try:
        option = gguf_option(checkpoint.folder)
        return AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False, **option)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"transformers cannot load {checkpoint.id}", found=str(error)) from error


def is_language_model(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint says that it was saved as a causal language model. GGUF files say an architecture only."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_config(checkpoint)
    if checkpoint.quantised == GGUF:
        return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    names = getattr(config, "architectures", None) or [""]
    return str(names[0]).endswith(LANGUAGE_MODELS)


def adopt_language_model(whole: nn.Module, checkpoint: Checkpoint, missing: set[str]) -> Backbone:
    """Put a whole causal language model into an arena; raises `BackboneError` where its output layer is not stored."""
    prefix = f"{whole.base_model_prefix}."
    outside = sorted(name for name in missing if not name.startswith(prefix))
    module = getattr(whole, prefix[:-1], None)
    if outside or not isinstance(module, nn.Module):
        raise BackboneError(
            f"{checkpoint.id} is no causal language model", found=f"no {', '.join(outside) or 'base model'}"[:300]
        )
    return adopt(module, checkpoint, {name.removeprefix(prefix) for name in missing}, whole)


def load_module(
    auto: Any, checkpoint: Checkpoint, *, dtype: str, device: str, config: Any = None
) -> tuple[nn.Module, set[str]]:
    """`auto.from_pretrained`, quietly; returns the module and the names that the checkpoint did not have."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its warning of a missing head is expected here and tells a user nothing
    progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = config or read_config(checkpoint)
        with work(f"loading {checkpoint.id}"):
            load = load_plain if checkpoint.quantised is None else load_dequantised
            model, info = load(auto, checkpoint, config, dtype_named(dtype))
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"transformers cannot load {checkpoint.id}", found=str(error)) from error
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
    missing = set(info["missing_keys"]) | {item[0] for item in info["mismatched_keys"]}
    return model.to(device).eval(), missing


@torch.no_grad()
def reload(backbone: Backbone) -> None:
    """Read the checkpoint again into the arena and the modules' buffers, after their memory was damaged. Storage stays
    where it is."""
    dtype = next(name for name, value in _DTYPES.items() if value == backbone.dtype)
    fresh = load_backbone(backbone.checkpoint, dtype=dtype, device=str(backbone.arena.device))
    parameters, buffers = fresh.parameters, dict(fresh.whole.named_buffers())
    for buffer in backbone.arena.buffers.values():
        buffer.zero_()  # what lies between two parameters
    for name in backbone.arena.slots:
        backbone.arena.view(name).copy_(parameters[name])
    for name, buffer in backbone.whole.named_buffers():
        if name in buffers and buffers[name].shape == buffer.shape:
            buffer.copy_(buffers[name])


def adopt(
    module: nn.Module, checkpoint: Checkpoint, missing: set[str], language_model: nn.Module | None = None
) -> Backbone:
    """Put a loaded base model's parameters into an arena, and those of the language model around it, if there is one.

    missing: parameters (of this module) that the checkpoint lacks; they belong to a head and stay outside.
    """
    refuse_sharded(language_model or module, checkpoint.id)
    found = {n: p for n, p in module.named_parameters(remove_duplicate=False) if n not in missing}
    if language_model is not None:
        found |= _around(language_model, module)
    digests = {name: digest for name in found if (digest := _stored_digest(module, checkpoint, name))}
    parameters = {name: p for name, p in found.items() if name in digests or _is_tied_to(p, found, digests)}
    if not parameters:
        raise BackboneError(f"no parameter of {checkpoint.id} matches its checkpoint's tensors by name")
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return Backbone(module, build_arena(parameters), checkpoint, digests, language_model)


def _around(whole: nn.Module, module: nn.Module) -> dict[str, nn.Parameter]:
    """What a language model has beside its base model: an output layer that is not tied to the embedding."""
    inside = {id(parameter) for parameter in module.parameters()}
    return {name: p for name, p in whole.named_parameters() if id(p) not in inside}


def _is_tied_to(parameter: nn.Parameter, found: Mapping[str, nn.Parameter], digests: Mapping[str, str]) -> bool:
    return any(found[name] is parameter for name in digests)


def _stored_digest(module: nn.Module, checkpoint: Checkpoint, name: str) -> str | None:
    """The digest of the stored tensor behind a parameter: same name, with the base prefix, or in an old spelling."""
    if checkpoint.quantised is not None:
        return checkpoint.fingerprint
    prefix = getattr(module, "base_model_prefix", "")
    for stored in (name, f"{prefix}.{name}"):
        for spelling in spellings(stored):
            if spelling in checkpoint.digests:
                return checkpoint.digests[spelling]
    return None


def spellings(name: str) -> list[str]:
    """The names under which checkpoints store a parameter: its own, then the old ones of a LayerNorm."""
    old = [name.removesuffix(new) + old for old, new in _LEGACY.items() if name.endswith("LayerNorm" + new)]
    return [name, *old]


def refuse_sharded(module: nn.Module, name: str) -> None:
    """Raises `BackboneError` unless every parameter is floating, real and whole on one device."""
    for key, parameter in module.named_parameters():
        if not parameter.is_floating_point() or parameter.dtype not in _DTYPES.values():
            raise BackboneError(f"{name}: parameter {key!r} is quantised or of an unknown kind", found=parameter.dtype)
        if parameter.is_meta or type(parameter.data) is not Tensor:
            raise BackboneError(
                f"{name} is sharded or not loaded: {key!r} has no storage of its own",
                found=type(parameter.data).__name__,
                fix="load it whole on one device, without a device map, tensor parallelism or FSDP",
            )
    devices = {str(parameter.device) for parameter in module.parameters()}
    if len(devices) > 1:
        raise BackboneError(f"{name} is sharded over devices", found=", ".join(sorted(devices)), expected="one device")
