from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsehub.patch
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine.swap import Swap
from sparsehub.errors import UnhealthyError
from sparsehub.patch import Patch, make_patch

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture
def backbone(tiny_checkpoint: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(tiny_checkpoint("bert")))


def random_patch(backbone: Backbone, seed: int, nnz: int = 400, value_kind: str = "add") -> Patch:
    """About `nnz` entries, spread over the parameters; values as large as weights are."""
    generator = torch.Generator().manual_seed(seed)
    total, parts = backbone.arena.numel, {}
    dtype = str(backbone.dtype).removeprefix("torch.")
    for name, slot in backbone.arena.slots.items():
        count = max(1, nnz * slot.numel // total)
        indices = torch.randint(slot.numel, (count,), generator=generator).unique()  # sorted
        values = torch.randn(len(indices), generator=generator) * 0.1
        parts[name] = ParameterDelta(slot.shape, indices, values.to(backbone.dtype) if value_kind == "set" else values)
    return make_patch(backbone, Delta(parts, value_kind, dtype if value_kind == "set" else "float32"))


def fail_half_way(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The next call of a kernel writes half of the values and raises; later calls work."""
    sound = getattr(sparsehub.patch, name)

    def broken(arena: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> None:
        monkeypatch.setattr(sparsehub.patch, name, sound)
        sound(arena, positions[: len(positions) // 2], values[: len(positions) // 2])
        raise RuntimeError("the device fell asleep")

    monkeypatch.setattr(sparsehub.patch, name, broken)


def test_a_switch_moves_the_arena_and_none_puts_it_back(backbone: Backbone) -> None:
    swap, base = Swap(backbone.arena), backbone.arena.digest()
    first, second = random_patch(backbone, 1), random_patch(backbone, 2)
    assert swap.to(first) and swap.current is first
    changed = backbone.arena.digest()
    assert changed != base
    assert not swap.to(first)
    assert swap.to(second) and backbone.arena.digest() not in (base, changed)
    assert swap.to(first) and backbone.arena.digest() == changed
    assert swap.to(None) and swap.current is None
    assert backbone.arena.digest() == base
    assert not swap.to(None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_500_switches_leave_every_bit_as_it_was(tiny_checkpoint: Callable[[str], Path], dtype: str) -> None:
    backbone = load_backbone(str(tiny_checkpoint("bert")), dtype=dtype)
    base, choices = backbone.arena.digest(), random.Random(5)
    patches: list[Patch | None] = [None, *(random_patch(backbone, seed) for seed in range(6))]
    patches += [random_patch(backbone, seed, value_kind="set") for seed in range(3)]
    swap = Swap(backbone.arena)
    for _ in range(500):
        swap.to(choices.choice(patches))
    swap.to(None)
    assert backbone.arena.digest() == base


@pytest.mark.parametrize("dtype", DTYPES)
def test_10000_switches_of_a_real_backbone_leave_every_bit_as_it_was(real_backbone: str, dtype: str) -> None:
    backbone = load_backbone(real_backbone, dtype=dtype)
    base, choices = backbone.arena.digest(), random.Random(6)
    patches: list[Patch | None] = [None, *(random_patch(backbone, seed, nnz=2000) for seed in range(20))]
    assert all(1500 < patch.nnz < 2500 for patch in patches if patch)
    swap = Swap(backbone.arena)
    for _ in range(10_000):
        swap.to(choices.choice(patches))
    swap.to(None)
    assert backbone.arena.digest() == base


@pytest.mark.parametrize(("value_kind", "kernel"), [("add", "scatter_add_"), ("set", "scatter_copy_")])
def test_an_apply_that_breaks_off_half_way_leaves_the_base_weights(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, value_kind: str, kernel: str
) -> None:
    swap, base = Swap(backbone.arena), backbone.arena.digest()
    patch = random_patch(backbone, 1, value_kind=value_kind)
    fail_half_way(monkeypatch, kernel)
    with pytest.raises(RuntimeError, match="fell asleep"):
        swap.to(patch)
    assert swap.healthy and swap.current is None
    assert backbone.arena.digest() == base
    assert swap.to(patch), "the next switch works"
    swap.to(None)
    assert backbone.arena.digest() == base


def test_a_switch_between_tasks_that_breaks_off_leaves_the_base_weights_not_the_old_task(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap, base = Swap(backbone.arena), backbone.arena.digest()
    first, second = random_patch(backbone, 1), random_patch(backbone, 2)
    swap.to(first)
    fail_half_way(monkeypatch, "scatter_add_")
    with pytest.raises(RuntimeError, match="fell asleep"):
        swap.to(second)
    assert swap.current is None
    assert backbone.arena.digest() == base


def test_a_restore_that_fails_ends_all_work(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    swap, patch = Swap(backbone.arena), random_patch(backbone, 1)
    swap.to(patch)

    def broken(*_: Any) -> None:
        raise RuntimeError("the device fell asleep")

    with monkeypatch.context() as patched:
        patched.setattr(sparsehub.patch, "scatter_copy_", broken)
        with pytest.raises(UnhealthyError, match="could not be restored"):
            swap.to(None)
    assert not swap.healthy
    for wanted in (None, patch):
        with pytest.raises(UnhealthyError, match="restart"):
            swap.to(wanted)


def test_an_apply_and_its_restore_that_both_fail_end_all_work(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap, patch = Swap(backbone.arena), random_patch(backbone, 1)

    def broken(*_: Any) -> None:
        raise RuntimeError("the device fell asleep")

    monkeypatch.setattr(sparsehub.patch, "scatter_add_", broken)
    monkeypatch.setattr(sparsehub.patch, "scatter_copy_", broken)
    with pytest.raises(UnhealthyError):
        swap.to(patch)
    assert not swap.healthy
