"""Export of a package as a SHiRA adapter that PEFT loads.

PEFT gives every matrix of a SHiRA adapter r (rows + columns) entries, r the same for all. A delta has as many in each
as it needs, so the smallest r that holds the fullest matrix is taken, and the others are filled with zeros at places
that do not change. Our own import knows how many are real (the file's metadata says so) and leaves the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsehub.convert.adapters import CONFIG_FILE, DTYPE_KEY, INSIDE, NNZ_KEY, WEIGHTS_FILE
from sparsehub.convert.name_matching import CheckpointLayout
from sparsehub.delta import ParameterDelta
from sparsehub.errors import UsageError
from sparsehub.files import canonical_json, new_folder
from sparsehub.package import Package
from sparsehub.package.task_spec import MULTIPLE_CHOICE, TEXT_GENERATION, TOKEN_CLASSIFICATION
from sparsehub.progress import work

_TASK_TYPES = {TOKEN_CLASSIFICATION: "TOKEN_CLS", MULTIPLE_CHOICE: None, TEXT_GENERATION: "CAUSAL_LM"}
SHOWN = 3


@dataclass(frozen=True)
class Exported:
    """An adapter that `export_shira` has written."""

    folder: Path
    rank: int  # PEFT's r
    entries: int  # of the package
    stored: int  # with the zeros that PEFT asks for


def export_shira(package: Package, layout: CheckpointLayout, out: Path) -> Exported:
    """Write the adapter folder `out`, head included (`modules_to_save`), atomically.

    Raises `UsageError` where there is no delta, or one that changes other than weights of Linear layers or has `set`
    values.
    """
    delta = package.delta
    if not delta.parameters:
        raise UsageError(
            "a SHiRA adapter adds to weights, and this package changes none",
            found="a head alone",
            fix="serve or materialize it; to train a change, look at the probe's score beside the card's",
        )
    if delta.value_kind != "add":
        raise UsageError("a SHiRA adapter adds to weights, and this package sets them", found=delta.value_kind)
    _refuse_others(package, layout)
    rank = max(-(-len(part.indices) // sum(part.shape)) for part in delta.parameters.values())
    tensors = {f"{INSIDE}{name}": tensor for name, tensor in package.head.items()}
    for name, part in delta.parameters.items():
        module = f"{INSIDE}{_whole(layout, name).removesuffix('.weight')}"
        positions, values = _padded(name, part, rank)
        columns = part.shape[1]
        tensors[f"{module}.shira_indices"] = torch.stack([positions // columns, positions % columns]).to(torch.int32)
        tensors[f"{module}.shira_weight"] = values
    # int8 values are products by now: the import keeps them as float32
    value_dtype = "float32" if delta.value_dtype == "int8" else delta.value_dtype
    nnz = json.dumps({name: len(part.indices) for name, part in delta.parameters.items()})
    with new_folder(out) as folder, work(f"writing {out.name}"):
        metadata = {"format": "pt", NNZ_KEY: nnz, DTYPE_KEY: value_dtype}
        save_file(tensors, folder / WEIGHTS_FILE, metadata=metadata)
        (folder / CONFIG_FILE).write_bytes(canonical_json(_config(package, layout, rank)))
    stored = sum(len(tensor) for name, tensor in tensors.items() if name.endswith(".shira_weight"))
    return Exported(out, rank, delta.nnz, stored)


def _refuse_others(package: Package, layout: CheckpointLayout) -> None:
    others = [name for name in package.delta.parameters if name not in layout.linear]
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise UsageError(
            "a SHiRA adapter changes weights of Linear layers alone, and this package changes others too",
            found=", ".join(others[:SHOWN]) + more,
            fix="train it with --exclude '*.bias,*Norm*,*embeddings*', or take it along with `sparsehub materialize`",
        )


def _padded(name: str, part: ParameterDelta, rank: int) -> tuple[Tensor, Tensor]:
    """Positions and float32 values, filled up to r (rows + columns) with zeros at the first places that are free."""
    wanted = rank * sum(part.shape)
    if wanted > part.numel:
        raise UsageError(
            f"PEFT's r {rank} needs more entries than {name!r} has",
            found=f"{wanted} of {part.numel}",
            fix="train it with --granularity tensor, so that no matrix is much fuller than another",
        )
    free = torch.ones(part.numel, dtype=torch.bool)
    free[part.indices] = False
    padding = torch.nonzero(free).flatten()[: wanted - len(part.indices)]
    positions = torch.cat([part.indices, padding])
    return positions, torch.cat([part.values.float(), torch.zeros(len(padding))])


def _whole(layout: CheckpointLayout, name: str) -> str:
    """A parameter's name in the task's model."""
    return name if name in layout.around else layout.prefix + name


def _config(package: Package, layout: CheckpointLayout, rank: int) -> Mapping[str, object]:
    modules = [_whole(layout, name).removesuffix(".weight") for name in package.delta.parameters]
    return {
        "peft_type": "SHIRA",
        "base_model_name_or_path": package.manifest.backbone.id,
        "task_type": _TASK_TYPES.get(package.manifest.task.kind, "SEQ_CLS"),
        "r": rank,
        "mask_type": "random",
        "random_seed": None,
        "target_modules": sorted(modules),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in package.head}) or None,
        "fan_in_fan_out": False,
        "init_weights": True,
        "inference_mode": True,
    }
