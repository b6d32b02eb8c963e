"""The head of a package that is extracted: the adapter's or checkpoint's own, or one that a package gives."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparsehub.backbone.backbone import read_config
from sparsehub.convert.adapter_change import Change
from sparsehub.convert.adapters import Adapter
from sparsehub.convert.checkpoint_pair import BackboneTensors
from sparsehub.convert.lora_options import MERGE
from sparsehub.convert.tensor_reader import stored_tensors
from sparsehub.errors import UsageError
from sparsehub.package.linear_head import linear_shapes
from sparsehub.package.manifest import HEAD_FILE
from sparsehub.package.task_spec import LINEAR, TaskSpec
from sparsehub.tensorfile import load_tensors


def linear_head(task: TaskSpec, given: Mapping[str, Tensor], backbone: BackboneTensors) -> dict[str, Tensor]:
    """A linear head as a package stores it; raises `UsageError` where none is given, or one of other shapes."""
    hidden = read_config(backbone.checkpoint).hidden_size
    shapes, found = linear_shapes(task, hidden), {name: tuple(tensor.shape) for name, tensor in given.items()}
    if found != shapes:
        fix = "give --task-of the package whose head it was trained with, or --kind for a head of transformers"
        raise UsageError("the task's linear head is not here", found=found or "no tensors", expected=shapes, fix=fix)
    return dict(given)


def adapter_head(
    task: TaskSpec, given: Mapping[str, Tensor], change: Change, backbone: BackboneTensors, adapter: Adapter
) -> dict[str, Tensor]:
    """The adapter's own head, or the one that `sparsehub train` has written beside it; a linear one may also be that of
    the package that says what the task is.

    Raises `UsageError` where there is none, and where a weight of the backbone stored beside it is not the backbone's.
    """
    _refuse_moved(change, backbone, adapter)
    beside = adapter.folder / HEAD_FILE
    stored = load_tensors(beside) if beside.is_file() else {}
    if task.head.type == LINEAR:
        return linear_head(task, stored or given, backbone)
    found = {**stored, **change.whole}
    missing = sorted(set(backbone.head) - set(found))
    if missing:
        raise UsageError(
            f"{adapter.folder} lacks the task's head",
            found=f"no {', '.join(missing)}",
            fix="train it with modules_to_save naming the head, or put head.safetensors beside it",
        )
    return {name: found[name] for name in backbone.head}


def _refuse_moved(change: Change, backbone: BackboneTensors, adapter: Adapter) -> None:
    """PEFT stores an embedding beside its LoRA, a raw state dict the whole backbone: it must be the backbone's own."""
    prefix, stored = backbone.layout.prefix, stored_tensors(backbone.checkpoint.folder)
    for name, tensor in change.whole.items():
        place = backbone.names.get(name.removeprefix(prefix))
        if name in backbone.head or place is None:
            continue
        base = stored[place].read()
        if base.shape != tensor.shape or not base.to(tensor.dtype).equal(tensor):
            raise UsageError(
                f"{adapter.folder} holds {name!r} with other values than the backbone's",
                found="a weight that was trained whole, resized, or moved by the adapter's initialisation",
                fix=MERGE,
            )
