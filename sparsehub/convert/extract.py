"""A package from a backbone and what was fine-tuned from it: a checkpoint or a PEFT adapter.

A checkpoint in two ways: lossless, every weight whose bits differ, as `set` values; or the largest changes that a
budget admits, as `add` values. Both read the checkpoints tensor by tensor, a piece of each at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sparsehub import __version__
from sparsehub.backbone import Checkpoint
from sparsehub.backbone.layers import changed_layers, layers_named
from sparsehub.convert.adapter_change import change_of
from sparsehub.convert.adapters import WEIGHTS_FILE, Adapter
from sparsehub.convert.checkpoint_pair import BackboneTensors, CheckpointPair, backbone_tensors, pair_up
from sparsehub.convert.configuration_check import check_configuration
from sparsehub.convert.name_matching import layout_of
from sparsehub.convert.output_comparison import Agreement
from sparsehub.convert.task_head import adapter_head, linear_head
from sparsehub.convert.tokenizer_check import check_tokenizer, has_tokenizer
from sparsehub.delta import DELTA_FILE, Delta
from sparsehub.delta.algebra import with_value_dtype
from sparsehub.delta.writer import DeltaWriter
from sparsehub.errors import UsageError
from sparsehub.files import new_folder
from sparsehub.memory import return_freed_memory
from sparsehub.package.manifest import (
    CONFIGURATION,
    FORMAT_VERSION,
    HEAD_FILE,
    DeltaRecord,
    Lineage,
    Manifest,
    TouchedParameter,
)
from sparsehub.package.manifest_builder import public_name
from sparsehub.package.task_spec import LINEAR, TaskSpec
from sparsehub.package.writer import finalize_package, write_package
from sparsehub.progress import work
from sparsehub.selection.largest import cut
from sparsehub.selection.layer_report import layer_of
from sparsehub.tensorfile import tensor_bytes


@dataclass(frozen=True)
class Extraction:
    """The package that an extraction shall write."""

    base: Checkpoint  # the backbone
    task: TaskSpec
    out: Path  # the package folder
    name: str
    version: str = "0.1.0"
    license: str = ""
    drop: tuple[str, ...] = ()  # shell patterns of tensors that may be left out
    head: Mapping[str, Tensor] = field(default_factory=dict)  # of a linear head, which no class of transformers has


Budget = Callable[[int], int]
"""From the number of entries of the whole backbone to the number that may change."""


@dataclass(frozen=True)
class Layer:
    """What a package changes in one part of the backbone."""

    part: str
    entries: int
    changed: int  # entries that the package changes
    kept: float  # share of the squared norm of the change that these hold


@dataclass(frozen=True)
class Extracted:
    """The result of an extraction, for the report of `sparsehub extract`."""

    folder: Path
    manifest: Manifest
    layers: tuple[Layer, ...]
    kept: float  # share of the change's squared norm that the package holds
    sparse_bytes: int  # of the delta
    dense_bytes: int  # of its source: the same weights stored whole, or the adapter's file
    unused: tuple[str, ...] = ()  # tensors that were left out by `drop`
    notes: tuple[str, ...] = ()  # what was unusual about the source, in sentences
    agreement: Agreement | None = None  # of a probe batch with the tuned model, where it was run

    @property
    def pays(self) -> bool:
        """Whether the sparse file is the smaller one."""
        return self.sparse_bytes < self.dense_bytes


def extract_lossless(wanted: Extraction, tuned: Checkpoint) -> Extracted:
    """A package of every weight that differs, bit for bit; needs the memory of a piece of two tensors and the head.

    Raises `BackboneError` where a tensor has no place or several dtypes meet, `DeltaError` where nothing differs.
    """
    return_freed_memory()
    backbone = backbone_tensors(layout_of(wanted.base, wanted.task), wanted.base)
    notes = check_same_model(wanted, tuned)
    pair = pair_up(backbone, tuned, wanted.drop)
    with new_folder(wanted.out) as folder:
        count = len(pair.parameters)
        with (
            work("comparing", count, "tensors") as advance,
            DeltaWriter(folder / DELTA_FILE, pair.value_dtype) as writer,
        ):
            for name, both in sorted(pair.parameters.items()):
                writer.add(name, math.prod(both.shape), both.differing())
                advance(1)
            writer.finish()
        record = _record("extracted", "set", pair.value_dtype, backbone, writer.nnz)
        if head := _head(wanted, pair, backbone):
            (folder / HEAD_FILE).write_bytes(tensor_bytes(head))
        manifest = finalize_package(folder, _draft(wanted, backbone, record, _lineage(tuned.id, tuned.fingerprint)))
    return _of_pair(wanted, manifest, pair, dict.fromkeys(pair.parameters, (1.0, 1.0)), notes)


def extract_largest(wanted: Extraction, tuned: Checkpoint, budget: Budget, value_dtype: str) -> Extracted:
    """A package of the largest changes; holds these in memory beside a piece of two tensors and the head.

    Raises like `extract_lossless`.
    """
    return_freed_memory()
    backbone = backbone_tensors(layout_of(wanted.base, wanted.task), wanted.base)
    notes = check_same_model(wanted, tuned)
    pair = pair_up(backbone, tuned, wanted.drop)
    shapes = {name: both.shape for name, both in pair.parameters.items()}
    found = cut(
        shapes, lambda name: pair.parameters[name].changes(), budget(backbone.reference.parameters), value_dtype
    )
    lineage = _lineage(tuned.id, tuned.fingerprint)
    manifest = _write(wanted, "extracted, largest", found.delta, _head(wanted, pair, backbone), backbone, lineage)
    return _of_pair(wanted, manifest, pair, found.norms, notes)


def extract_adapter(
    wanted: Extraction, adapter: Adapter, budget: Budget | None, value_dtype: str | None = None
) -> Extracted:
    """A package from a PEFT adapter: lossless from a sparse one without a budget, the largest entries of a LoRA.

    value_dtype: by default float16 for a LoRA, and the adapter's own for a sparse one.
    Raises `UsageError` for a LoRA without a budget and for an adapter without the task's head.
    """
    backbone = backbone_tensors(layout_of(wanted.base, wanted.task), wanted.base)
    change = change_of(adapter, backbone.layout)
    beside = dataclasses.replace(wanted.base, id=str(adapter.folder), folder=adapter.folder)
    notes = check_tokenizer(wanted.base, beside, wanted.task) if has_tokenizer(adapter.folder) else ()
    total = backbone.reference.parameters
    if change.sparse is not None and budget is None:
        delta = with_value_dtype(change.sparse, value_dtype) if value_dtype else change.sparse
        norms = dict.fromkeys(change.shapes, (1.0, 1.0))
    elif budget is not None:
        found = cut(change.shapes, change.change_of, budget(total), value_dtype or "float16")
        delta, norms = found.delta, dict(found.norms)
    else:
        raise UsageError("a LoRA changes every entry of its matrices", fix="say how many to keep: --density or --nnz")
    head = adapter_head(wanted.task, wanted.head, change, backbone, adapter)
    lineage = _lineage(str(adapter.folder), adapter.digest)
    manifest = _write(wanted, f"extracted, {adapter.kind.lower()}", delta, head, backbone, lineage)
    kept, whole = (sum(column) for column in zip(*norms.values(), strict=True))
    return Extracted(
        wanted.out,
        manifest,
        layers(manifest.touched, change.shapes, norms),
        kept / whole if whole else 1.0,
        manifest.files[DELTA_FILE].size,
        (adapter.folder / WEIGHTS_FILE).stat().st_size,
        notes=(*adapter.notes, *notes),
    )


def check_same_model(wanted: Extraction, tuned: Checkpoint) -> tuple[str, ...]:
    """What a report says of harmless differences beside the weights; raises `BackboneError` for any other."""
    notes = check_configuration(wanted.base, tuned, wanted.task)
    return (*notes, *check_tokenizer(wanted.base, tuned, wanted.task))


def _head(wanted: Extraction, pair: CheckpointPair, backbone: BackboneTensors) -> dict[str, Tensor]:
    if wanted.task.head.type == LINEAR:
        return linear_head(wanted.task, wanted.head, backbone)
    return {name: stored.read() for name, stored in pair.head.items()}


def _lineage(source: str, digest: str) -> Lineage:
    return Lineage((), public_name(source), digest)


def _record(
    method: str, value_kind: str, value_dtype: str, backbone: BackboneTensors, nnz: Mapping[str, int]
) -> DeltaRecord:
    shapes, total = backbone.layout.base, sum(nnz.values())
    touched = {name: TouchedParameter(shapes[name], backbone.digest_of(name), n) for name, n in nnz.items()}
    return DeltaRecord(
        method,
        total / backbone.reference.parameters,
        total,
        value_kind,
        value_dtype,
        touched,
        changed_layers(touched, layers_named(shapes)),
    )


def _write(
    wanted: Extraction,
    method: str,
    delta: Delta,
    head: Mapping[str, Tensor],
    backbone: BackboneTensors,
    lineage: Lineage,
) -> Manifest:
    nnz = {name: len(part.indices) for name, part in delta.parameters.items()}
    record = _record(method, delta.value_kind, delta.value_dtype, backbone, nnz)
    return write_package(wanted.out, _draft(wanted, backbone, record, lineage), delta, head)


def _draft(wanted: Extraction, backbone: BackboneTensors, record: DeltaRecord, lineage: Lineage) -> Manifest:
    return Manifest(
        FORMAT_VERSION,
        wanted.name,
        wanted.version,
        wanted.task,
        backbone.reference,
        record,
        files={},
        training={"versions": {"sparsehub": __version__}, CONFIGURATION: backbone.configuration},
        license=wanted.license,
        lineage=lineage,
    )


def _of_pair(
    wanted: Extraction,
    manifest: Manifest,
    pair: CheckpointPair,
    norms: Mapping[str, tuple[float, float]],
    notes: tuple[str, ...],
) -> Extracted:
    kept, whole = (sum(column) for column in zip(*norms.values(), strict=True))
    return Extracted(
        wanted.out,
        manifest,
        layers(manifest.touched, {name: both.shape for name, both in pair.parameters.items()}, norms),
        kept / whole if whole else 1.0,
        manifest.files[DELTA_FILE].size,
        sum(both.tuned.entry.stop - both.tuned.entry.start for both in pair.parameters.values()),
        pair.unused,
        (*pair.notes, *notes),
    )


def layers(
    touched: Mapping[str, TouchedParameter],
    shapes: Mapping[str, tuple[int, ...]],
    norms: Mapping[str, tuple[float, float]],
) -> tuple[Layer, ...]:
    """What a package changes, layer by layer. norms: parameter name to (squared norm kept, squared norm of all)."""
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(layer_of(name), []).append(name)
    found = []
    for part, names in groups.items():
        kept, whole = (sum(column) for column in zip(*(norms[name] for name in names), strict=True))
        changed = sum(touched[name].nnz for name in names if name in touched)
        found.append(Layer(part, sum(math.prod(shapes[n]) for n in names), changed, kept / whole if whole else 1.0))
    return tuple(found)
