"""How long it takes to make a model another task's: our patch, PEFT's merges, and loading the weights."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, Report, Row, Timing, interleaved, write_report
from benchmarks.models import SIZES, linear_delta, linear_layers, load_plain, save_encoder
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine.swap import Swap
from sparsehub.kernels import torch_ops
from sparsehub.patch import make_patch

ROUNDS = 9
THREADS = (1, 2)
OURS = "sparsehub: apply + restore"
FLOOR = "floor: as many cache lines in a row, twice"
FLOATS_A_LINE = 16


@dataclass(frozen=True)
class Contender:
    """A case and the weights it works on: by parameter name, to compare with the original afterwards."""

    case: Case
    weights: Mapping[str, Tensor]


def main() -> None:
    warnings.filterwarnings("ignore", module="peft")
    rows, checks = [], []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        os.environ["SPARSEHUB_CACHE"] = folder
        for size in SIZES:
            found, check = measure(size, Path(folder) / size.replace(" ", ""))
            rows += found
            checks.append(check)
    notes = [
        "Interleaved rounds. `times ours` is against apply + restore; a switch from one task to another is that same "
        "pair of moves, for PEFT too (unmerge, merge).",
        "With two threads on a machine whose cores are busy, an operation that torch splits waits for its slower half: "
        "that slows PEFT and loading, and not ours, which runs in one thread. Believe the tables with one thread.",
        "SHiRA's adapter holds the very entries and values of our delta; LoRA has rank 8 on all linear layers.",
        "`load_state_dict` copies a whole model that is in memory already; `from a file` reads it from a safetensors "
        "file that the system has in its page cache. Both go one way only, as does `touched parameters`.",
        "Where the floor takes longer than we do, the cache still held lines of ours from the round before.",
        "`changed for good`: entries whose bits differ from the original once every adapter is taken out again.",
    ]
    print(write_report(Report("swap", "Switching tasks", rows, notes, checks), " and ".join(map(str, THREADS))))


def measure(size: str, folder: Path) -> tuple[list[Row], str]:
    """The rows of one size, and the sentence that says that our arena came back as it was."""
    save_encoder(size, folder)
    backbone = load_backbone(str(folder))
    delta, other = (linear_delta(backbone, seed) for seed in (1, 2))
    original = {name: backbone.arena.view(name).clone() for name in backbone.arena.slots}
    before = backbone.arena.digest()
    swap = Swap(backbone.arena)
    contenders = [
        *ours(backbone, swap, delta, other),
        with_torch(backbone, delta),
        floor(delta),
        *peft_merges(folder, delta),
        *loading(folder, original, delta),
    ]
    setup = {"encoder": size, "parameters": backbone.arena.numel, "changed entries": delta.nnz, "rounds": ROUNDS}
    rows = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        timings = interleaved([contender.case for contender in contenders], ROUNDS)
        with_threads = {**setup, "torch threads": threads}
        rows += [Row(c.case.name, with_threads, figures(c, timings, original)) for c in contenders]
    swap.to(None)
    assert backbone.arena.digest() == before, "the arena is not what it was"
    return rows, f"{size}: after all rounds the arena's digest is the original's ({before[:23]}...)"


def figures(contender: Contender, timings: Mapping[str, Timing], original: Mapping[str, Tensor]) -> dict[str, Any]:
    timing, reference = timings[contender.case.name], timings[OURS]
    return {
        "median ms": timing.median,
        "times ours": timing.median / reference.median,
        "fastest ms": timing.fastest,
        "times our fastest": timing.fastest / reference.fastest,
        "changed for good": sum(int((original[name] != w).sum()) for name, w in contender.weights.items()),
    }


def ours(backbone: Backbone, swap: Swap, delta: Delta, other: Delta) -> list[Contender]:
    first, second = make_patch(backbone, delta), make_patch(backbone, other)
    weights: dict[str, Tensor] = {}  # the digest judges ours, bit for bit

    def apply_and_restore() -> None:
        swap.to(first)
        swap.to(None)

    return [
        Contender(Case(OURS, apply_and_restore, prepare=lambda: swap.to(None)), weights),
        Contender(
            Case("sparsehub: task A to task B", lambda: swap.to(second), prepare=lambda: swap.to(first)), weights
        ),
    ]


def with_torch(backbone: Backbone, delta: Delta) -> Contender:
    """The same moves by torch's own scatter, which is what runs where the native kernels were not built."""
    (segment,) = make_patch(backbone, delta).segments
    buffer, positions = backbone.arena.buffers[segment.dtype], segment.positions.long()

    def apply_and_restore() -> None:
        torch_ops.scatter_add_(buffer, positions, segment.values)
        torch_ops.scatter_copy_(buffer, positions, segment.base)

    return Contender(Case("sparsehub: apply + restore, torch's kernels", apply_and_restore), {})


def floor(delta: Delta) -> Contender:
    """What no scatter can beat: as many cache lines, one beside the other, read and written by a plain sum, twice."""
    lines = torch.zeros(delta.nnz * FLOATS_A_LINE)

    def read_and_write() -> None:
        lines.add_(1.0)
        lines.add_(-1.0)

    return Contender(Case(FLOOR, read_and_write), {})


def peft_merges(folder: Path, delta: Delta) -> list[Contender]:
    from peft import LoraConfig, ShiraConfig, get_peft_model

    shira = get_peft_model(load_plain(folder), ShiraConfig(r=1, target_modules="all-linear"))
    for name, layer in shira.base_model.model.named_modules():
        if hasattr(layer, "shira_weight"):
            _give_entries(layer, delta.parameters[f"{name}.weight"])
    lora = get_peft_model(load_plain(folder), LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    return [_merge("PEFT SHiRA: merge + unmerge", shira), _merge("PEFT LoRA r=8: merge + unmerge", lora)]


def _give_entries(layer: Any, part: ParameterDelta) -> None:
    """Make a SHiRA layer's adapter the same change as ours, in the form in which SHiRA keeps it."""
    rows, columns = part.indices // part.shape[1], part.indices % part.shape[1]
    layer.shira_indices["default"] = torch.stack([rows, columns]).int()
    layer.shira_weight["default"] = nn.Parameter(part.values.clone())


def _merge(name: str, model: Any) -> Contender:
    def merge_and_unmerge() -> None:
        model.merge_adapter()
        model.unmerge_adapter()

    weights = {f"{n.removesuffix('.base_layer')}.weight": layer.weight for n, layer in _base_layers(model).items()}
    return Contender(Case(name, merge_and_unmerge), weights)


def _base_layers(model: Any) -> dict[str, nn.Linear]:
    layers = linear_layers(model.base_model.model)
    return {name: layer for name, layer in layers.items() if name.endswith(".base_layer")}


def loading(folder: Path, original: Mapping[str, Tensor], delta: Delta) -> list[Contender]:
    from safetensors.torch import load_file

    model = load_plain(folder)
    parameters = dict(model.named_parameters())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def touched() -> None:
        for name in delta.parameters:
            parameters[name].copy_(original[name])

    return [
        Contender(Case("load_state_dict", lambda: model.load_state_dict(state)), parameters),
        Contender(
            Case("load_state_dict from a file", lambda: model.load_state_dict(load_file(folder / "model.safetensors"))),
            parameters,
        ),
        Contender(Case("copy of the touched parameters", touched), parameters),
    ]


if __name__ == "__main__":
    main()
