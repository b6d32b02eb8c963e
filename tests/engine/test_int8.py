"""An int8 base: every row runs mixed, near its float answer, whatever runs beside it; nothing runs on it unasked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from sparsehub import Engine
from sparsehub.backbone import load_backbone
from sparsehub.engine.int8_matrix import Int8Matrix
from sparsehub.engine.packed_matrix import PACKERS
from sparsehub.errors import BackboneMismatchError, UsageError
from sparsehub.kernels import quantise_rows
from tests.support.int8_ways import INT8_WAYS, in_use
from tests.support.packed_weights import PlainWeight
from tests.support.tiny_tasks import TinyTasks

TEXTS = ["one two three", "four", "five six seven eight nine ten", "two two"]


@pytest.fixture(params=INT8_WAYS)
def int8_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What multiplies, one after the other."""
    yield from in_use(request.param, monkeypatch)


def int8_engine(checkpoint: Any, **options: Any) -> Engine:
    return Engine(load_backbone(str(checkpoint("bert"))), weights="int8", **options)


def vectors(engine: Engine, task: str | None, texts: list[str]) -> torch.Tensor:
    futures = engine.embed(task, texts).futures
    while not all(future.done() for future in futures):
        engine.step()
    return torch.tensor([future.result() for future in futures])


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_float_one_rounded_and_each_row_is_alone(int8_way: str, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 40, bias=bias)
    x = torch.randn(3, 5, 96) * torch.logspace(-3, 3, 5)[:, None]
    x[1, 2] = 0
    matrix, vnni = Int8Matrix(linear), quantise_rows(torch.ones(1, 4)).steps == 127
    with torch.inference_mode():
        found, exact = matrix(x), nn.functional.linear(x.double(), linear.weight.double()).float()
        if linear.bias is not None:
            exact = exact + linear.bias
        assert found.shape == exact.shape
        rough = (found - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(1e-9)
        assert float(rough.max()) < (0.03 if vnni else 0.05)
        torch.testing.assert_close(matrix(x[2, 3]), found[2, 3])  # whatever the rows beside it are
        assert torch.equal(matrix(x[2, 3]), found[2, 3])
        x[0, 0, 0] = float("nan")
        assert matrix(x)[0, 0].isnan().all() and matrix(x)[2].isfinite().all()


def test_rows_of_several_tasks_are_near_their_float_answers_and_the_base_stays(
    tiny_checkpoint: Any, tiny_tasks: TinyTasks
) -> None:
    packages = [tiny_tasks.read(name, seed=seed) for seed, name in enumerate(("one", "two"))]
    base = load_backbone(str(tiny_checkpoint("bert")))
    exact = Engine(base)
    quantised = int8_engine(tiny_checkpoint, allow_quantised=True, mode="swap")
    for engine in (exact, quantised):
        for package in packages:
            engine.add(package)
    for name in (None, *(package.manifest.name for package in packages)):
        near, right = vectors(quantised, name, TEXTS), vectors(exact, name, TEXTS)
        assert float((near * right).sum(-1).min()) > 0.999
        torch.testing.assert_close(vectors(quantised, name, TEXTS[:1]), near[:1], atol=1e-4, rtol=0)
    assert quantised._targets.int8 is not None and len(quantised._targets.int8.gelus) == 2, "one in each layer"
    assert all("forward" not in vars(gelu) for gelu in quantised._targets.int8.gelus), "only inside a pass"
    assert quantised.arena.swap.moves == 0, "no row has written the weights"
    assert quantised.backbone.arena.digest() == exact_digest(base)
    assert all("every row runs mixed" in str(status.why_unshared) for status in quantised.status())
    assert quantised.backbone.checkpoint.fingerprint == base.checkpoint.fingerprint


def exact_digest(backbone: Any) -> str:
    return load_backbone(str(backbone.checkpoint.folder)).arena.digest()


def test_a_package_trained_on_float_weights_needs_leave(tiny_checkpoint: Any, tiny_tasks: TinyTasks) -> None:
    engine = int8_engine(tiny_checkpoint)
    with pytest.raises(BackboneMismatchError, match="allow it with --allow-quantised"):
        engine.add(tiny_tasks.read("one"))
    assert len(vectors(engine, None, TEXTS)) == len(TEXTS)


def test_damage_of_the_int8_weights_is_found_and_mended(tiny_checkpoint: Any, caplog: Any) -> None:
    engine = int8_engine(tiny_checkpoint, check_seconds=0)  # no look beside serving, which would mend it first
    before = vectors(engine, None, TEXTS)
    int8 = engine._targets.int8
    assert int8 is not None
    matrix = next(iter(int8.matrices.values()))
    for tensor, word in zip(matrix._weight.tensors, (torch.int8, torch.int32, torch.int32), strict=True):
        whole = tensor.view(-1).view(word)
        whole[len(whole) // 2] ^= 1
        assert not matrix.is_sound(), "a single bit is found"
        whole[len(whole) // 2] ^= 1
        assert matrix.is_sound()
    matrix._weight.packed.random_(-127, 128)
    assert not torch.allclose(vectors(engine, None, TEXTS), before, atol=1e-3)
    with caplog.at_level(logging.ERROR, "sparsehub"):
        assert engine.arena.check_all()
    assert "int8 weights in memory are not those" in caplog.text and engine.arena.repairs == 1
    assert torch.equal(vectors(engine, None, TEXTS), before)


def test_what_our_int8_is_not_for_is_packed_by_a_library(tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKERS, "int8", PlainWeight)
    engine = Engine(load_backbone(str(tiny_checkpoint("bert")), dtype="bfloat16"), weights="int8", check_seconds=0)
    assert engine._targets.int8 is None and engine._targets.packed is not None
    assert vectors(engine, None, TEXTS).isfinite().all()
    with pytest.raises(UsageError, match="unknown kind of weights; found: int4; expected: float, int8, fp8, nf4"):
        Engine(load_backbone(str(tiny_checkpoint("bert"))), weights="int4")
