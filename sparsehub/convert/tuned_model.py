"""The model that was fine-tuned, made from its own files: what `extract` measures a package against.

A checkpoint by its own configuration and weights, whatever its names are; an adapter by PEFT's own merge where PEFT is
installed, which must then be what `adapter_change` says, or by what `adapter_change` says alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone import Checkpoint
from sparsehub.backbone.backbone import dtype_named, read_config
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.convert.adapter_change import Change, change_of
from sparsehub.convert.adapters import INSIDE, Adapter
from sparsehub.convert.checkpoint_pair import BackboneTensors, backbone_tensors, pair_up
from sparsehub.convert.extract import Extraction
from sparsehub.convert.lora_options import MERGE
from sparsehub.convert.name_matching import CheckpointLayout, layout_of, on_base_model
from sparsehub.convert.task_head import adapter_head
from sparsehub.convert.task_inference import CONFIG_FILE
from sparsehub.convert.tensor_reader import stored_tensors
from sparsehub.errors import UsageError
from sparsehub.package.task_model import auto_class, load_task_model, model_on, task_config
from sparsehub.package.task_spec import EMBEDDING, TaskSpec

WEIGHT_TOLERANCE = 1e-5  # between PEFT's merge and ours, of a weight, relative to the tensor's largest
_MODULES = ("lora_A", "lora_B")  # matrices that are modules with a weight in PEFT; the others are parameters


@dataclasses.dataclass(frozen=True)
class TunedModel:
    """A fine-tuned model in evaluation mode, on the CPU."""

    model: nn.Module  # transformers' AutoModelFor...
    made_by: str  # how a report calls it


def tuned_model(wanted: Extraction, origin: Checkpoint | Adapter, dtype: str) -> TunedModel:
    """The model behind a checkpoint or an adapter; raises `UsageError` where PEFT merges an adapter to other weights.

    dtype: of a checkpoint's model; an adapter's is float32.
    """
    backbone = backbone_tensors(layout_of(wanted.base, wanted.task), wanted.base)
    if not isinstance(origin, Adapter):
        return TunedModel(_model_of_checkpoint(wanted, origin, backbone, dtype), "the tuned checkpoint")
    change = change_of(origin, backbone.layout)
    head = adapter_head(wanted.task, wanted.head, change, backbone, origin)
    if importlib.util.find_spec("peft") is None:
        return TunedModel(_with_change(wanted, change, head), "the adapter by its formula (PEFT is not installed)")
    merged = _merged_by_peft(wanted, origin, change, head, backbone)
    _check_weights(wanted, origin, change, backbone, merged)
    return TunedModel(merged, "the adapter as PEFT merges it")


@torch.no_grad()
def _model_of_checkpoint(wanted: Extraction, tuned: Checkpoint, backbone: BackboneTensors, dtype: str) -> nn.Module:
    own = (tuned.folder / CONFIG_FILE).is_file()
    pad = load_tokenizer(wanted.base).pad_token_id
    config = task_config(read_config(tuned if own else wanted.base), wanted.task, pad)
    config.pad_token_id = task_config(read_config(wanted.base), wanted.task, pad).pad_token_id  # what batches hold
    whole = auto_class(EMBEDDING if on_base_model(wanted.task) else wanted.task.kind)
    model: nn.Module = whole.from_config(config, dtype=dtype_named(dtype), trust_remote_code=False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    pair = pair_up(backbone, tuned, wanted.drop)
    readers = {_whole(backbone.layout, name): both.tuned for name, both in pair.parameters.items()}
    for name, reader in {**readers, **pair.head}.items():
        parameters[name].copy_(reader.read())
    if on_base_model(wanted.task):
        model = model_on(model, wanted.task)
        _put(model, wanted.head)
    return model.eval()


@torch.no_grad()
def _with_change(wanted: Extraction, change: Change, head: Mapping[str, Tensor]) -> nn.Module:
    loaded = load_task_model(wanted.base, wanted.task)
    for name in change.shapes:
        loaded.backbone.arena.view(name).add_(change.change_of(name))
    _put(loaded.model, head)
    return loaded.model


def _merged_by_peft(
    wanted: Extraction, adapter: Adapter, change: Change, head: Mapping[str, Tensor], backbone: BackboneTensors
) -> nn.Module:
    """What PEFT makes of the adapter's matrices and settings; raises `UsageError` where it cannot load them."""
    import peft

    modules = {name: _in_model(backbone.layout, wanted.task, name).removesuffix(".weight") for name in change.parts}
    state = {
        f"{INSIDE}{modules[name]}.{part}{'.weight' if part in _MODULES else ''}": tensor
        for name, parts in change.parts.items()
        for part, tensor in parts.items()
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_pretrained(str(adapter.folder))
            _target(config, sorted(modules.values()))
            model = peft.get_peft_model(load_task_model(wanted.base, wanted.task).model, config)
            loaded = peft.set_peft_model_state_dict(model, state)
            merged: nn.Module = model.merge_and_unload()
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise UsageError(f"PEFT cannot load {adapter.folder}", found=str(error)[:300], fix=MERGE) from error
    if loaded.unexpected_keys:
        raise UsageError(f"PEFT has no place for tensors of {adapter.folder}", found=loaded.unexpected_keys[0])
    _put(merged, head)
    return merged.eval()


def _target(config: Any, modules: list[str]) -> None:
    """The modules whose matrices are stored, whatever the names of the model were that the adapter was trained in."""
    config.target_modules = modules
    config.modules_to_save, config.task_type, config.inference_mode = None, None, False
    for name in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(config, name):
            setattr(config, name, None)


@torch.no_grad()
def _check_weights(
    wanted: Extraction, adapter: Adapter, change: Change, backbone: BackboneTensors, merged: nn.Module
) -> None:
    """Raises `UsageError` unless every weight of PEFT's merge is the backbone's with our change."""
    parameters = dict(merged.named_parameters(remove_duplicate=False))
    task = wanted.task
    stored = stored_tensors(backbone.checkpoint.folder)
    for name, place in backbone.names.items():
        expected = stored[place].read().float()
        if name in change.shapes:
            expected = expected + change.change_of(name)
        found = parameters[_in_model(backbone.layout, task, name)].float()
        difference = float((found - expected).abs().max()) if expected.numel() else 0.0
        if not difference <= WEIGHT_TOLERANCE * max(1.0, float(expected.abs().max())):
            raise UsageError(
                f"PEFT merges {adapter.folder} to other weights than its two matrices say: {name!r}",
                found=f"a difference of {difference:.3g}",
                expected=f"at most {WEIGHT_TOLERANCE:g}",
                fix=MERGE,
            )


@torch.no_grad()
def _put(model: nn.Module, head: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in head.items():
        parameters[name].copy_(tensor)


def _whole(layout: CheckpointLayout, name: str) -> str:
    """A parameter's name in the task's model."""
    return name if name in layout.around else layout.prefix + name


def _in_model(layout: CheckpointLayout, task: TaskSpec, name: str) -> str:
    """A parameter's name in the model of `load_task_model`, which keeps a base model that stands alone in a field."""
    return f"backbone.{name}" if on_base_model(task) else _whole(layout, name)
