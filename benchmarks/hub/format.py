"""What a delta costs as a file: bytes an entry beside other formats and the entropy; writing and reading it."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Case, Report, Row, Timing, interleaved, verdict, write_report
from benchmarks.models import SIZES, linear_delta, save_encoder
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.delta import Delta, delta_bytes, parse_delta
from sparsehub.deltafile import validate_delta
from sparsehub.tensorfile import load_tensors, tensor_bytes

ROUNDS = 9
OURS = "sparsehub, float16"
INDEX_BITS = {"float16": 16, "float32": 32, "int8": 8}


@dataclass(frozen=True)
class Format:
    """One way to store the same change. path: a file of it; bits: of a value, so that the rest is the index's."""

    name: str
    path: Path
    bits: int
    read: Callable[[Path], Any]


def main() -> None:
    rows, checks = [], []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["SPARSEHUB_CACHE"] = temporary
        for size in SIZES:
            folder = Path(temporary) / size.replace(" ", "")
            save_encoder(size, folder)
            found, check = measure(size, load_backbone(str(folder)), folder)
            rows += found
            checks += check
    notes = [
        "One change of 0.5% of all Linear weights, stored in each format; a layer's share varies. Interleaved rounds.",
        "`bits an index`: what the file takes beyond its values; the entropy is log2 of the number of ways to choose "
        "as many entries of each parameter, which positions without a pattern cannot go below.",
        "`read`: from a file in the system's page cache to tensors; ours proves every rule of the format there, the "
        "whole model is only mapped. `proof`: without tensors, as a hub does it. `digest`: SHA-256 of the bytes.",
        "COO is a row and a column index of each entry beside the values, as PEFT's SHiRA stores it (rows and columns "
        "of 32 bits, values in float32), and the same with a flat 32-bit position and float16 values.",
        "zlib, level 6, over our file: what a general compressor would still find, and what it costs to read.",
    ]
    print(write_report(Report("format", "A delta as a file", rows, notes, checks), str(torch.get_num_threads())))


def measure(size: str, backbone: Backbone, folder: Path) -> tuple[list[Row], list[str]]:
    delta = linear_delta(backbone, 1)
    shapes = {name: part.shape for name, part in delta.parameters.items()}
    formats = [*ours(delta, shapes, folder), *others(delta, folder), whole(folder)]
    bound = entropy(delta)
    ours_bytes = formats[0].path.read_bytes()
    timings = interleaved([Case(one.name, partial(one.read, one.path)) for one in formats], ROUNDS)
    steps = interleaved(
        [
            Case("write", lambda: delta_bytes(_as(delta, "float16"))),
            Case("proof", lambda: validate_delta(ours_bytes, shapes, "float16")),
            Case("digest", lambda: hashlib.sha256(ours_bytes).digest()),
        ],
        ROUNDS,
    )
    setup = {"encoder": size, "parameters": backbone.arena.numel, "entries": delta.nnz}
    setup["entropy, bits an index"] = round(bound, 2)
    rows = [Row(one.name, setup, _figures(one, delta.nnz, timings[one.name])) for one in formats]
    told = {**setup, "step": f"of {OURS}"}
    rows += [Row(name, told, {"median ms": timing.median, "MB a second": _rate(ours_bytes, timing)})
             for name, timing in steps.items()]  # fmt: skip
    per_entry = len(ours_bytes) / delta.nnz
    return rows, [verdict(f"{size}: bytes an entry with 16-bit values", per_entry, 4.2)]


def ours(delta: Delta, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> list[Format]:
    formats = []
    for dtype, bits in INDEX_BITS.items():
        path = folder / f"{dtype}.safetensors"
        path.write_bytes(delta_bytes(_as(delta, dtype)))

        def read(path: Path, dtype: str = dtype) -> Delta:
            return parse_delta(path.read_bytes(), shapes, "add", dtype)

        formats.append(Format(f"sparsehub, {dtype}", path, bits, read))
    packed = folder / "packed"
    packed.write_bytes(zlib.compress((folder / "float16.safetensors").read_bytes(), 6))
    unpack = Format("sparsehub, float16, in zlib", packed, 16, lambda path: zlib.decompress(path.read_bytes()))
    return [*formats, unpack]


def others(delta: Delta, folder: Path) -> list[Format]:
    """The formats that other tools use, with the same entries."""
    shira: dict[str, Tensor] = {}
    flat: dict[str, Tensor] = {}
    for name, part in delta.parameters.items():
        places = torch.stack([part.indices // part.shape[1], part.indices % part.shape[1]]).int()
        shira |= {f"{name}.shira_weight": part.values.float(), f"{name}.shira_indices": places}
        flat |= {f"{name}.values": part.values.half(), f"{name}.indices": part.indices.int()}
    return [
        _stored("COO, float32, as PEFT SHiRA", folder / "shira.safetensors", shira, 32),
        _stored("COO, flat, float16", folder / "flat.safetensors", flat, 16),
    ]


def _stored(name: str, path: Path, tensors: Mapping[str, Tensor], bits: int) -> Format:
    path.write_bytes(tensor_bytes(tensors))
    return Format(name, path, bits, load_tensors)


def whole(folder: Path) -> Format:
    from safetensors.torch import load_file

    return Format("the whole model, float32", folder / "model.safetensors", 0, load_file)


def _as(delta: Delta, value_dtype: str) -> Delta:
    return Delta(delta.parameters, delta.value_kind, value_dtype)


def entropy(delta: Delta) -> float:
    """Bits an index: log2 of the number of choices of each parameter's entries, over all entries."""
    bits = sum(_log2_choices(math.prod(part.shape), len(part.indices)) for part in delta.parameters.values())
    return bits / delta.nnz


def _log2_choices(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _figures(one: Format, nnz: int, timing: Timing) -> dict[str, Any]:
    size = one.path.stat().st_size
    figures: dict[str, Any] = {"bytes": size, "bytes an entry": size / nnz}
    if one.bits:
        figures["bits an index"] = 8 * size / nnz - one.bits
    return {**figures, "read ms": timing.median}


def _rate(data: bytes, timing: Timing) -> float:
    return len(data) / 1e6 / (timing.median / 1e3)


if __name__ == "__main__":
    main()
