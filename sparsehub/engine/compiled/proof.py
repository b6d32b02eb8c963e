"""The proof of a compiled program: what it returns is what the eager pass returns, before and after the arena changes;
and the measurement of where it is faster."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.compiled.mixed_pass import arguments_of
from sparsehub.engine.compiled.program import Program
from sparsehub.engine.compiled.program_files import ARGUMENTS
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.mixing_check import loud_delta, loudly_changed
from sparsehub.engine.target_modules import TargetModules
from sparsehub.errors import EngineError
from sparsehub.patch import make_patch

TOLERANCE = 1e-4  # of an output, or of the largest one where that is more than 1
# The same on an int8 base: where two passes differ in the last bit, a value may be rounded to the next of 127 levels.
TOLERANCE_INT8 = 1e-2
SHAPES = ((1, 2), (1, 7), (2, 5), (5, 31), (16, 16), (1, 300))  # rows and tokens; a program is made for any


@dataclass(frozen=True)
class TrialTasks:
    """Tasks of large changes, by which programs of mixed passes are proved and measured."""

    targets: TargetModules
    adapters: Sequence[AdapterWeights | None]

    def batch(self, rows: int) -> MixedBatch:
        """So many rows, handed out to the tasks in turn, neighbours of one task together."""
        count = min(rows, len(self.adapters))
        bounds = [(slot, slot * rows // count, (slot + 1) * rows // count) for slot in range(count)]
        return MixedBatch(self.targets, self.adapters[:count], bounds)


def trial_tasks(backbone: Backbone, targets: TargetModules) -> TrialTasks:
    """A task that changes every module, one that changes every other place, and one that changes nothing. The arena
    must hold the base weights."""
    whole = loud_delta(backbone, targets)
    half = dataclasses.replace(whole, parameters=dict([*whole.parameters.items()][::2]))
    made = [make_adapter_weights(targets, backbone.arena, make_patch(backbone, delta)) for delta in (whole, half)]
    return TrialTasks(targets, [*(adapter for adapter in made if isinstance(adapter, AdapterWeights)), None])


@torch.inference_mode()
def compare(backbone: Backbone, program: Program, rows: int, length: int, tasks: TrialTasks | None = None) -> type[Any]:
    """The class of what the base model returns; raises `EngineError` where the program returns anything else for a
    batch of so many rows and tokens, on whatever weights are in the arena. tasks: of a mixed pass."""
    batch = sample(backbone, program, rows, length)
    eager, its = _eager(backbone, batch, tasks), _compiled(program, batch, tasks)
    expected = {name: value for name, value in eager.items() if isinstance(value, Tensor)}
    if set(expected) != set(its):
        raise EngineError("a compiled pass returns other tensors", found=sorted(its), expected=sorted(expected))
    tolerance = TOLERANCE if tasks is None or tasks.targets.int8 is None else TOLERANCE_INT8
    for name, value in expected.items():
        _refuse_difference(f"{name} of {rows} x {length}", its[name], value, batch["attention_mask"], tolerance)
    return type(eager)


@torch.inference_mode()
def compare_changed(backbone: Backbone, program: Program, tasks: TrialTasks | None = None) -> None:
    """`compare` with a large change in every parameter, and without it again. The arena must hold the base weights, and
    holds them again afterwards."""
    with loudly_changed(backbone):
        compare(backbone, program, 2, 5, tasks)
    compare(backbone, program, 1, 7, tasks)


def _eager(backbone: Backbone, batch: dict[str, Tensor], tasks: TrialTasks | None) -> Any:
    if tasks is None:
        return backbone.module(**batch)
    with tasks.batch(len(batch["input_ids"])).on_model():
        return backbone.module(**batch)


def _compiled(program: Program, batch: dict[str, Tensor], tasks: TrialTasks | None) -> dict[str, Tensor]:
    if tasks is None:
        return program(batch)
    rows, length = batch["input_ids"].shape
    mixed = tasks.batch(rows)
    return program({**batch, **arguments_of(mixed, length)})


def _refuse_difference(what: str, found: Tensor, expected: Tensor, mask: Tensor, tolerance: float) -> None:
    if found.shape != expected.shape:
        raise EngineError(f"a compiled pass is wrong: {what}", found=found.shape, expected=expected.shape)
    if expected.shape[:2] == mask.shape:  # states of tokens: those of the padding are nobody's
        found, expected = found[mask.bool()], expected[mask.bool()]
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    if not bool((found - expected).abs().max() <= allowed):  # NaN is no less than anything
        raise EngineError(f"a compiled pass is wrong: {what}", found=float((found - expected).abs().max()))


def sample(backbone: Backbone, program: Program, rows: int, length: int) -> dict[str, Tensor]:
    """A batch of random token ids with padding on either side, as the program takes it."""
    return sample_of(backbone, [name for name in program.inputs if name not in ARGUMENTS], rows, length)


def sample_of(backbone: Backbone, inputs: Sequence[str], rows: int, length: int) -> dict[str, Tensor]:
    """The same, of these of a base model's inputs."""
    generator, config = torch.Generator().manual_seed(rows * length), backbone.config
    mask = torch.ones(rows, length, dtype=torch.long)
    if rows > 1:
        mask[0, length - length // 3 :], mask[1, : length // 3] = 0, 0
    ids = torch.randint(config.vocab_size, mask.shape, generator=generator).where(mask > 0, config.pad_token_id or 0)
    kinds = torch.randint(getattr(config, "type_vocab_size", None) or 1, mask.shape, generator=generator)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
    return {name: given[name] for name in inputs}


@torch.inference_mode()
def measure(
    backbone: Backbone, program: Program, rows: int, length: int, tasks: TrialTasks | None = None
) -> tuple[float, float]:
    """Seconds of a compiled pass, and of the eager one of the same batch. The weights do not count."""
    batch, start = sample(backbone, program, rows, length), time.perf_counter()
    _compiled(program, batch, tasks)
    between = time.perf_counter()
    _eager(backbone, batch, tasks)
    return between - start, time.perf_counter() - between


def sizes(shapes: Iterable[tuple[int, int]], max_tokens: int) -> list[tuple[int, int]]:
    """Rows and tokens of passes, of sequences that the backbone takes, tokens in all rising."""
    distinct = {rows * min(length, max_tokens): (rows, min(length, max_tokens)) for rows, length in shapes}
    return [distinct[tokens] for tokens in sorted(distinct)]
