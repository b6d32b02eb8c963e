"""Statistics of a delta for the package summary and the charts: density by layer and kind, value histogram, sizes."""

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
_FILLER = {"self", "dense", "weight"}  # parts of a name that do not help to tell two matrices of a layer apart
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
_BINS = 41


@dataclass(frozen=True)
class Cell:
    """How many entries change in some of the touched parameters: a cell of the heat map, or one parameter."""

    nnz: int = 0  # entries that change
    numel: int = 0  # all entries of these parameters

    @property
    def density(self) -> float:
        """The share of the entries that change."""
        return self.nnz / self.numel if self.numel else 0.0

    def plus(self, touched: TouchedParameter) -> Cell:
        """The same cell with one more parameter in it."""
        return Cell(self.nnz + touched.nnz, self.numel + math.prod(touched.shape))


@dataclass(frozen=True)
class HeatMap:
    """Where a delta changes its backbone: what the charts and tables of densities show."""

    layers: tuple[str, ...]  # rows, in the order of the model
    kinds: tuple[str, ...]  # columns: kinds of parameters, as `kind_of` names them
    cells: Mapping[tuple[str, str], Cell]  # by layer and kind; absent where the delta touches no such parameter
    outside: Mapping[str, Cell]  # parameters that lie in no layer, by name


@dataclass(frozen=True)
class Histogram:
    """How a delta's values are distributed."""

    edges: tuple[float, ...]  # of the bins: one more than there are counts
    counts: tuple[int, ...]  # values in each bin
    beyond: int  # values outside the outermost edges
    mean_size: float  # mean of the absolute values
    largest: float  # largest absolute value


@dataclass(frozen=True)
class Sizes:
    """Bytes of a package beside the other forms in which a task could be shipped."""

    package: int  # all its files
    delta: int  # delta.safetensors
    head: int  # head.safetensors
    full: int  # all parameters of the backbone, as they are stored
    lora_8: int  # LoRA of rank 8 in 16 bits on the matrices that the delta touches; 0 where it touches none
    lora_rank: float  # the rank at which LoRA on these matrices takes as many bytes as the delta

    @property
    def full_ratio(self) -> float:
        """How many times larger the backbone is than delta and head."""
        return self.full / max(self.delta + self.head, 1)


def heat_map(manifest: Manifest) -> HeatMap:
    """The densities of a package's delta, by layer and kind of parameter."""
    cells: dict[tuple[str, str], Cell] = {}
    outside: dict[str, Cell] = {}
    layers: dict[str, tuple[str, int]] = {}
    kinds: dict[str, int] = {}
    for name, touched in manifest.touched.items():
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
    """A parameter's stack of layers, its layer's number there, and the rest of its name.

    `encoder.layer.3.output.dense.weight` gives `encoder.layer`, 3, `output.dense.weight`; a name without a number gives
    an empty stack and None.
    """
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if place is None:
        return "", None, name.removesuffix(".weight")
    return ".".join(parts[:place]), int(parts[place]), ".".join(parts[place + 1 :])


def kind_of(rest: str) -> str:
    """The column of a layer's parameter in the heat map: all biases, all parameters of norms, or one matrix."""
    if _NORM.search(rest):
        return NORMS
    if rest.endswith("bias"):
        return BIASES
    parts = [part for part in rest.split(".") if part not in _FILLER]
    return ".".join(parts) or rest


def histogram(delta: StoredDelta) -> Histogram:
    """The histogram of a delta's values, over the range that holds all but 3 in a thousand."""
    values = delta.floats()
    sizes = np.abs(values)
    reach = float(np.quantile(sizes, 0.997)) or float(sizes.max()) or 1.0
    counts, edges = np.histogram(values, bins=_BINS, range=(-reach, reach))
    beyond = len(values) - int(counts.sum())
    mean, largest = float(sizes.mean(dtype=np.float64)), float(sizes.max())
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), beyond, mean, largest)


def sizes(manifest: Manifest) -> Sizes:
    """The bytes of a package beside the whole backbone and LoRA."""
    files = {name: record.size for name, record in manifest.files.items()}
    matrices = [t.shape for name, t in manifest.touched.items() if _is_matrix(name, t)]
    per_rank = 2 * sum(rows + columns for rows, columns in matrices)
    return Sizes(
        package=len(manifest.to_bytes()) + sum(files.values()),
        delta=files.get(DELTA_FILE, 0),
        head=files.get(HEAD_FILE, 0),
        full=manifest.backbone.parameters * _BYTES.get(manifest.backbone.dtype, 4),
        lora_8=8 * per_rank,
        lora_rank=files.get(DELTA_FILE, 0) / per_rank if per_rank else 0.0,
    )


def _is_matrix(name: str, touched: TouchedParameter) -> bool:
    """Whether LoRA would sit there: on a matrix of a layer."""
    return len(touched.shape) == 2 and split_name(name)[1] is not None
