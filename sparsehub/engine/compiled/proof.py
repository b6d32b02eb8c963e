"""The proof of a compiled program: what it returns is what the eager pass returns, before and after the arena changes;
and the measurement of where it is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.engine.compiled.program import Program
from sparsehub.engine.mixing_check import loud_changes
from sparsehub.errors import EngineError
from sparsehub.patch import apply_patch, make_patch, restore_patch

TOLERANCE = 1e-4  # of an output, or of the largest one where that is more than 1
SHAPES = ((1, 2), (1, 7), (2, 5), (5, 31), (16, 16), (1, 300))  # rows and tokens; a program is made for any


@torch.inference_mode()
def compare(backbone: Backbone, program: Program, rows: int, length: int) -> type[Any]:
    """The class of what the base model returns; raises `EngineError` where the program returns anything else for a
    batch of so many rows and tokens, on whatever weights are in the arena."""
    batch = sample(backbone, program, rows, length)
    eager, its = backbone.module(**batch), program(batch)
    expected = {name: value for name, value in eager.items() if isinstance(value, Tensor)}
    if set(expected) != set(its):
        raise EngineError("a compiled pass returns other tensors", found=sorted(its), expected=sorted(expected))
    for name, value in expected.items():
        _refuse_difference(f"{name} of {rows} x {length}", its[name], value, batch["attention_mask"])
    return type(eager)


@torch.inference_mode()
def compare_changed(backbone: Backbone, program: Program) -> None:
    """`compare` with a large change in every parameter, and without it again. The arena must hold the base weights, and
    holds them again afterwards."""
    patch = make_patch(backbone, loud_changes(backbone, set(backbone.arena.slots.values())))
    apply_patch(backbone.arena, patch)
    try:
        compare(backbone, program, 2, 5)
    finally:
        restore_patch(backbone.arena, patch)
    compare(backbone, program, 1, 7)


def _refuse_difference(what: str, found: Tensor, expected: Tensor, mask: Tensor) -> None:
    if found.shape != expected.shape:
        raise EngineError(f"a compiled pass is wrong: {what}", found=found.shape, expected=expected.shape)
    if expected.shape[:2] == mask.shape:  # states of tokens: those of the padding are nobody's
        found, expected = found[mask.bool()], expected[mask.bool()]
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not bool((found - expected).abs().max() <= allowed):  # NaN is no less than anything
        raise EngineError(f"a compiled pass is wrong: {what}", found=float((found - expected).abs().max()))


def sample(backbone: Backbone, program: Program, rows: int, length: int) -> dict[str, Tensor]:
    """A batch of random token ids with padding on either side, as the program takes it."""
    generator, config = torch.Generator().manual_seed(rows * length), backbone.config
    mask = torch.ones(rows, length, dtype=torch.long)
    if rows > 1:
        mask[0, length - length // 3 :], mask[1, : length // 3] = 0, 0
    ids = torch.randint(config.vocab_size, mask.shape, generator=generator).where(mask > 0, config.pad_token_id or 0)
    kinds = torch.randint(getattr(config, "type_vocab_size", None) or 1, mask.shape, generator=generator)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
    return {name: given[name] for name in program.inputs}


@torch.inference_mode()
def measure(backbone: Backbone, program: Program, rows: int, length: int) -> tuple[float, float]:
    """Seconds of a compiled pass, and of the eager one of the same batch. The weights do not count."""
    batch = sample(backbone, program, rows, length)
    return _seconds(lambda: program(batch)), _seconds(lambda: backbone.module(**batch))


def sizes(shapes: Iterable[tuple[int, int]], max_tokens: int) -> list[tuple[int, int]]:
    """Rows and tokens of passes, of sequences that the backbone takes, tokens in all rising."""
    distinct = {rows * min(length, max_tokens): (rows, min(length, max_tokens)) for rows, length in shapes}
    return [distinct[tokens] for tokens in sorted(distinct)]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
