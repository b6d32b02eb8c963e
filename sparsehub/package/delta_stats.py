"""What a delta changes, as numbers to draw: density over layers and kinds of matrix, values, sizes beside others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sparsehub.deltafile import DELTA_FILE, StoredDelta
from sparsehub.package.manifest import HEAD_FILE, Manifest, TouchedParameter

BIASES, NORMS = "biases", "norms"
_NORM = re.compile(r"norm|(^|[._])ln([._]|\d|$)", re.IGNORECASE)
_FILLER = {"self", "dense", "weight"}  # parts of a name that tell two matrices of a layer apart no better than the rest
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
_BINS = 41


@dataclass(frozen=True)
class Cell:
    """Changed entries, of how many. Parameters that the delta does not touch are counted in neither."""

    nnz: int = 0
    numel: int = 0

    @property
    def density(self) -> float:
        return self.nnz / self.numel if self.numel else 0.0

    def plus(self, touched: TouchedParameter) -> Cell:
        return Cell(self.nnz + touched.nnz, self.numel + math.prod(touched.shape))


@dataclass(frozen=True)
class HeatMap:
    """Where a delta changes its backbone.

    cells: by layer and kind, both in the order in which to show them; outside: what lies in no layer, by name.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    outside: Mapping[str, Cell]


@dataclass(frozen=True)
class Histogram:
    """How the values are spread. edges: one more than counts; beyond: values outside the outermost edges."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    beyond: int
    mean_size: float
    largest: float


@dataclass(frozen=True)
class Sizes:
    """Bytes of a package beside what else a task could be shipped as. All values of LoRA in 16 bits.

    lora_8: LoRA of rank 8 on the matrices that the delta touches; lora_rank: the rank at which LoRA on them takes as
    many bytes as the delta does; full: all parameters of the backbone as stored.
    """

    package: int
    delta: int
    head: int
    full: int
    lora_8: int
    lora_rank: float


def heat_map(manifest: Manifest) -> HeatMap:
    """The density of a delta by layer and kind of matrix."""
    cells: dict[tuple[str, str], Cell] = {}
    outside: dict[str, Cell] = {}
    layers: dict[str, tuple[str, int]] = {}
    kinds: dict[str, int] = {}
    for name, touched in manifest.delta.parameters.items():
        stack, number, rest = split_name(name)
        if number is None:
            outside[rest] = outside.get(rest, Cell()).plus(touched)
            continue
        layer, kind = f"{stack} {number}".strip(), kind_of(rest)
        layers[layer] = (stack, number)
        kinds[kind] = kinds.get(kind, 0) + math.prod(touched.shape)
        cells[layer, kind] = cells.get((layer, kind), Cell()).plus(touched)
    ordered = sorted(kinds, key=lambda kind: (kind == NORMS, kind == BIASES, kind))
    return HeatMap(tuple(sorted(layers, key=layers.__getitem__)), tuple(ordered), cells, dict(sorted(outside.items())))


def split_name(name: str) -> tuple[str, int | None, str]:
    """A parameter's stack, its layer's number there, and what it is: `encoder.layer`, 3, `output.dense.weight`."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if place is None:
        return "", None, name.removesuffix(".weight")
    return ".".join(parts[:place]), int(parts[place]), ".".join(parts[place + 1 :])


def kind_of(rest: str) -> str:
    """The kind of a layer's parameter: biases together, scales of norms together, each matrix by itself."""
    if _NORM.search(rest):
        return NORMS
    if rest.endswith("bias"):
        return BIASES
    parts = [part for part in rest.split(".") if part not in _FILLER]
    return ".".join(parts) or rest


def histogram(delta: StoredDelta) -> Histogram:
    """The spread of a delta's values, over the range that holds all but a few in a thousand."""
    values = delta.floats()
    sizes = np.abs(values)
    reach = float(np.quantile(sizes, 0.997)) or float(sizes.max()) or 1.0
    counts, edges = np.histogram(values, bins=_BINS, range=(-reach, reach))
    beyond = len(values) - int(counts.sum())
    mean, largest = float(sizes.mean(dtype=np.float64)), float(sizes.max())
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), beyond, mean, largest)


def sizes(manifest: Manifest) -> Sizes:
    """The bytes of a package beside a full model and LoRA."""
    files = {name: record.size for name, record in manifest.files.items()}
    matrices = [t.shape for name, t in manifest.delta.parameters.items() if _is_matrix(name, t)]
    per_rank = 2 * sum(rows + columns for rows, columns in matrices)
    return Sizes(
        package=len(manifest.to_bytes()) + sum(files.values()),
        delta=files.get(DELTA_FILE, 0),
        head=files.get(HEAD_FILE, 0),
        full=manifest.backbone.parameters * _BYTES.get(manifest.backbone.dtype, 4),
        lora_8=8 * per_rank,
        lora_rank=files.get(DELTA_FILE, 0) / per_rank if per_rank else 0.0,
    )


def percent(share: float) -> str:
    """A share for people: two or three digits, 0.0051 -> 0.51%; what is not nothing never looks like nothing."""
    value = 100 * share
    if 0 < value < 0.005:
        return "<0.01%"
    return f"{value:.0f}%" if value >= 10 else f"{value:.1f}%" if value >= 1 else f"{value:.2f}%"


def _is_matrix(name: str, touched: TouchedParameter) -> bool:
    """Whether LoRA would sit there: on a matrix of a layer."""
    return len(touched.shape) == 2 and split_name(name)[1] is not None
