"""A packed base (int8, fp8, nf4): every row runs mixed on it and is what float weights of the same values give; damage
of it is mended; on a GPU the float weights leave the device."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsehub import Engine
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.engine import GenerationLimits, Sampling, packed
from sparsehub.engine.packed_matrix import PACKERS, PackedMatrix
from sparsehub.errors import BackboneMismatchError, MissingExtraError
from tests.support.packed_weights import PlainWeight
from tests.support.tiny_tasks import TinyTasks, tiny_speakers

LIBRARIES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TEXTS = ["one two three", "four", "five six seven eight nine ten", "two two"]


@pytest.fixture(params=["plain", "fp8", "nf4"])
def weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kinds of packed weights: one that needs no library, under the name of another, and those that are there."""
    if request.param == "plain":
        monkeypatch.setitem(PACKERS, "fp8", PlainWeight)
        yield "fp8"
        return
    needs(request.param)
    yield request.param


def needs(kind: str) -> None:
    if importlib.util.find_spec(LIBRARIES[kind]) is None:
        pytest.skip(f"{LIBRARIES[kind]} is not installed")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_product_is_that_of_the_dequantised_weight(kind: str, dtype: torch.dtype, bias: bool) -> None:
    needs(kind)
    torch.manual_seed(0)
    linear = nn.Linear(128, 48, bias=bias, dtype=dtype).requires_grad_(False)
    x = torch.randn(3, 5, 128, dtype=dtype)
    with torch.inference_mode():
        matrix = PackedMatrix(kind, linear, lambda: linear.weight)
        found, stands_for = matrix(x), matrix.weight.dequantised()
        assert found.shape == (3, 5, 48) and found.dtype == dtype
        right = nn.functional.linear(x.double(), stands_for.double(), linear.bias.double() if bias else None)
        near = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
        assert float((found - right).abs().max()) < near
        lost = (stands_for - linear.weight).double().norm() / linear.weight.double().norm()
        assert float(lost) < {"int8": 0.01, "fp8": 0.04, "nf4": 0.11}[kind]
        assert sum(tensor.nbytes for tensor in matrix.tensors) < 0.8 * linear.weight.nbytes


def engine_of(folder: Path, weights: str, **options: Any) -> Engine:
    return Engine(load_backbone(str(folder)), weights=weights, allow_quantised=True, check_seconds=0, **options)


def dequantised_engine(quantised: Engine, folder: Path) -> Engine:
    """One on float weights that are those of a packed base."""
    backbone = load_backbone(str(folder))
    base = quantised._targets.packed
    assert base is not None
    modules: dict[str, Any] = dict(backbone.whole.named_modules())
    for index, matrix in base.matrices.items():
        target, right = quantised._targets.targets[index], matrix.weight.dequantised()
        modules[target.name].weight.data.copy_(right.t() if target.kind == "Conv1D" else right)
    return Engine(backbone, check_seconds=0, mode="swap")


def vectors(engine: Engine, task: str | None, texts: list[str] = TEXTS) -> torch.Tensor:
    futures = engine.embed(task, texts).futures
    while not all(future.done() for future in futures):
        engine.step()
    return torch.tensor([future.result() for future in futures])


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_rows_are_those_of_float_weights_of_the_same_values(
    weights: str, kind: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    folder = Path(tiny_checkpoint(kind))
    tasks = TinyTasks(folder, tmp_path)
    packages = [tasks.read(name, seed=seed) for seed, name in enumerate(("one", "two"))]
    quantised = engine_of(folder, weights, mode="swap")
    right = dequantised_engine(quantised, folder)
    for engine in (quantised, right):
        for package in packages:
            engine.add(package)
    for name in (None, "one", "two"):
        torch.testing.assert_close(vectors(quantised, name), vectors(right, name), atol=2e-5, rtol=1e-4)
    assert quantised.arena.swap.moves == 0 and quantised._targets.packed is not None
    assert {status.why_unshared for status in quantised.status()} == {
        f"the backbone's weights are {weights}, and every row runs mixed"
    }
    assert quantised.backbone.checkpoint.fingerprint == right.backbone.checkpoint.fingerprint


@pytest.fixture(scope="module")
def speakers(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> TinyTasks:
    return tiny_speakers(tiny_checkpoint("llama"), tmp_path_factory.mktemp("speakers"))


LIMITS = GenerationLimits(cache_tokens=512, batch_tokens=16)


def texts_of(engine: Engine, *names: str | None) -> list[Any]:
    generator = engine.generator
    assert generator is not None
    asked = [engine.generate(name, [5 + i, 9, 7], Sampling(max_tokens=6)) for i, name in enumerate(names)]
    while generator.step():
        pass
    return [generation.result(0).tokens for generation in asked]


def test_texts_are_those_of_float_weights_of_the_same_values(weights: str, speakers: TinyTasks) -> None:
    packages = [speakers.read(f"speaker{i}", "text-generation", seed=i) for i in range(2)]
    quantised = engine_of(speakers.folder, weights, generation=LIMITS)
    right = dequantised_engine(quantised, speakers.folder)
    names = [quantised._targets.targets[i].name for i in quantised._targets.packed.matrices]  # type: ignore[union-attr]
    assert "lm_head" not in names and len(names) == 14, "seven maps in each of two layers"
    for engine in (quantised, right):
        for package in packages:
            engine.add(package)
    assert texts_of(quantised, "speaker0", "speaker1", None) == texts_of(right, "speaker0", "speaker1", None)
    for name in ("speaker0", None):  # a task alone, and the plain backbone
        assert texts_of(quantised, name) == texts_of(right, name)
    assert quantised.arena.swap.moves == 0


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arena leaves the modules, as it does on a GPU; here both are in host memory."""
    monkeypatch.setattr(packed, "stays", lambda device: False)


def damage(tensor: torch.Tensor) -> None:
    flat = tensor.data.view(-1).view(torch.uint8)
    flat[len(flat) // 2] ^= 1


def test_damage_of_what_left_the_arena_is_found_and_mended(
    weights: str, split: None, tiny_checkpoint: Any, tiny_tasks: TinyTasks
) -> None:
    engine = engine_of(tiny_checkpoint("bert"), weights)
    engine.add(tiny_tasks.read("one"))
    before, base = [vectors(engine, name) for name in (None, "one")], engine._targets.packed
    assert base is not None and base.copies
    norm = next(parameter for name, parameter in base.copies.items() if "LayerNorm" in name)
    for place in (next(iter(base.matrices.values())).tensors[0], next(iter(base.copies.values())), norm):
        damage(place)
        assert engine.arena.check_all() and engine.arena.failures == engine.arena.repairs
        after = [vectors(engine, name) for name in (None, "one")]
        assert all(map(torch.equal, before, after))
    assert engine.arena.failures == 3
    (buffer,) = engine.backbone.arena.buffers.values()
    damage(buffer)
    assert engine.arena.check_all() and engine.arena.failures == 4
    engine.add(tiny_tasks.read("two", seed=1))
    assert all(map(torch.equal, before, [vectors(engine, name) for name in (None, "one")]))


def test_the_float_weights_of_packed_maps_leave_the_device(
    weights: str, split: None, tiny_checkpoint: Any, tiny_tasks: TinyTasks
) -> None:
    engine = engine_of(tiny_checkpoint("bert"), weights)
    kept = engine_of(tiny_checkpoint("bert"), "float")
    modules = dict(engine.backbone.whole.named_modules())
    base = engine._targets.packed
    assert base is not None
    for index in base.matrices:
        module: Any = modules[engine._targets.targets[index].name]
        assert module.weight.numel() == 0 and (module.bias is None or module.bias.numel())
    assert engine.backbone.arena.digest() == kept.backbone.arena.digest(), "tasks are made of it"
    package = tiny_tasks.read("one")
    engine.add(package)
    assert vectors(engine, "one").isfinite().all()


def test_the_same_where_the_arena_left(weights: str, tiny_checkpoint: Any, tiny_tasks: TinyTasks, request: Any) -> None:
    package, found = tiny_tasks.read("one"), []
    for name in (None, "split"):
        if name is not None:
            request.getfixturevalue(name)
        engine = engine_of(tiny_checkpoint("bert"), weights)
        engine.add(package)
        found.append(torch.cat([vectors(engine, None), vectors(engine, "one")]))
    assert torch.equal(*found)


def test_a_package_trained_on_float_weights_needs_leave(weights: str, tiny_checkpoint: Any, tiny_tasks: Any) -> None:
    engine = Engine(load_backbone(str(tiny_checkpoint("bert"))), weights=weights)
    with pytest.raises(BackboneMismatchError, match=f"found: {weights} weights; to do: measure what it loses"):
        engine.add(tiny_tasks.read("one"))


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_a_library_that_is_missing_is_named(kind: str, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] in LIBRARIES.values():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=r"is not installed; to do: pip install 'sparsehub\[quantised\]'"):
        Engine(load_backbone(str(tiny_checkpoint("bert"))), weights=kind)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(weights: str, dtype: str, tiny_checkpoint: Any, tiny_tasks: TinyTasks) -> None:
    backbone: Callable[[], Backbone] = functools.partial(load_backbone, str(tiny_checkpoint("bert")), dtype=dtype)
    quantised = Engine(backbone(), weights=weights, allow_quantised=True, check_seconds=0)
    exact = Engine(backbone(), check_seconds=0)
    for engine in (quantised, exact):
        engine.add(tiny_tasks.read("one"))
    for name in (None, "one"):
        assert float((vectors(quantised, name) * vectors(exact, name)).sum(-1).min()) > 0.98
