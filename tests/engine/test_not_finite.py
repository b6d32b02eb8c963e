"""What is no number is never an answer: NaN and infinity are the row's own error, and weights that a dtype cannot hold
are refused when a task is made ready."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.backbone import load_backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine import Engine, GenerationLimits, Sampling
from sparsehub.errors import DeltaError, FormatError, NotFiniteError, RequestError
from sparsehub.package import read_package
from sparsehub.package.pooling import unit_vectors
from sparsehub.package.task_spec import MEAN
from sparsehub.patch import make_patch, refuse_overflow

POISON = "river"


@pytest.fixture
def engine(tiny_tasks: Any, suite: Mapping[str, Path]) -> Iterator[Engine]:
    engine = Engine(load_backbone(str(tiny_tasks.folder)), mode="swap", check_seconds=0)
    for package in suite.values():
        engine.add(read_package(package))
    yield engine
    engine.stop(drain=5)


def poison_states(engine: Engine, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """The backbone's states hold a value that is no number in every row with the poisoned word."""
    token, module = engine.tokenizer.convert_tokens_to_ids(POISON), engine.backbone.module
    assert token != engine.tokenizer.unk_token_id
    sound = module.forward

    def forward(*args: Any, **inputs: Any) -> Any:
        outputs = sound(*args, **inputs)
        for states in outputs.values():
            states[(inputs["input_ids"] == token).any(-1)] = value
        return outputs

    monkeypatch.setattr(module, "forward", forward)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("mode", ["swap", "mixed"])
def test_an_answer_that_is_no_number_is_its_own_rows_error(
    engine: Engine, suite: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, mode: str, value: float
) -> None:
    engine.mode = mode
    poison_states(engine, monkeypatch, value)
    for name in suite:
        fields = engine.info(name).spec.text_fields
        plain, poisoned = _items(engine, name, fields)
        pending = engine.classify(name, [plain, poisoned, plain])
        while engine.step():
            pass
        first, broken, last = pending.futures
        assert first.result(0) == last.result(0)
        with pytest.raises(NotFiniteError, match="not a number"):
            broken.result(0)


def _items(engine: Engine, name: str, fields: tuple[str, ...]) -> tuple[Any, Any]:
    """A plain and a poisoned item of a task, whatever its kind."""
    spec = engine.info(name).spec

    def item(text: str) -> Any:
        if spec.choice_fields:
            return dict.fromkeys((*fields, *spec.choice_fields), text)
        return text if len(fields) == 1 else dict.fromkeys(fields, text)

    return item("the fox"), item(f"the {POISON}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [None, "three"])
def test_an_embedding_that_is_no_number_is_its_own_rows_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str | None, value: float
) -> None:
    poison_states(engine, monkeypatch, value)
    pending = engine.embed(name, ["the fox", f"the {POISON}"])
    while engine.step():
        pass
    assert sum(x * x for x in pending.futures[0].result(0)) == pytest.approx(1)
    with pytest.raises(NotFiniteError):
        pending.futures[1].result(0)


def test_states_so_large_that_their_length_is_infinite_are_no_zero_vector(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not unit_vectors(MEAN, torch.full((1, 2, 8), 1e30), torch.ones(1, 2)).any()
    poison_states(engine, monkeypatch, 1e30)
    pending = engine.embed(None, [f"the {POISON}"])
    while engine.step():
        pass
    with pytest.raises(NotFiniteError):
        pending.futures[0].result(0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_whose_logits_are_no_numbers_ends_with_an_error_and_its_neighbour_goes_on(
    tiny_language: Any, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    limits = GenerationLimits(cache_tokens=2048)
    engine = Engine(load_backbone(str(tiny_language.folder)), check_seconds=0, generation=limits)
    assert engine.generator is not None
    sampling = Sampling(max_tokens=12, temperature=temperature, seed=3, logprobs=2)
    alone = engine.generate(None, "SAILOR:\n", sampling)
    while not alone.future.done():
        engine.generator.step()
    fine, broken = engine.generate_many(None, ["SAILOR:\n", "CLERK:\n"], [sampling, sampling])
    model = engine.backbone.whole
    sound, steps = model.forward, []

    def forward(*args: Any, **inputs: Any) -> Any:
        outputs = sound(*args, **inputs)
        steps.append(1)
        if len(steps) == 4:
            outputs.logits[..., -1, 5] = float("nan")
        return outputs

    monkeypatch.setattr(model, "forward", forward)
    while not (fine.future.done() and broken.future.done()):
        engine.generator.step()
    results = sorted((fine, broken), key=lambda text: text.future.exception() is not None)
    assert isinstance(results[1].future.exception(), NotFiniteError)
    assert results[0].future.exception() is None and len(results[0].result().tokens) == 12
    if results[0] is fine:
        assert fine.result().tokens == alone.result().tokens
    assert engine.generator.usage().pages == 0
    engine.stop(drain=0)


TOO_LARGE = {"float16": 7e4, "bfloat16": 3.4e38, "float32": float("inf")}


@pytest.mark.parametrize("dtype", list(TOO_LARGE))
def test_a_package_that_its_dtype_cannot_hold_is_refused_with_the_parameter(tiny_tasks: Any, dtype: str) -> None:
    engine = Engine(load_backbone(str(tiny_tasks.folder), dtype=dtype), check_seconds=0)
    package = tiny_tasks.read("huge", seed=7)
    name = "encoder.layer.1.output.dense.weight"
    package.delta.parameters[name].values[3] = TOO_LARGE[dtype]
    before = engine.backbone.arena.digest()
    with pytest.raises(DeltaError, match=rf"{name}.* larger than torch\.{dtype} can hold; found: 1 entries"):
        engine.add(package)
    assert not engine.tasks.all() and engine.backbone.arena.digest() == before


def test_a_head_that_its_dtype_cannot_hold_is_refused_with_the_parameter(tiny_tasks: Any) -> None:
    engine = Engine(load_backbone(str(tiny_tasks.folder), dtype="float16"), check_seconds=0)
    package = tiny_tasks.read("huge-head", seed=8)
    package.head["classifier.bias"][1] = 1e6
    with pytest.raises(FormatError, match=r"'classifier\.bias' is larger than torch\.float16 can hold"):
        engine.add(package)


def test_a_composition_that_overflows_is_the_callers_error(engine: Engine) -> None:
    with pytest.raises(RequestError, match=r"larger than torch\.float32 can hold"):
        engine.classify("three*3e38+seven*3e38", ["the fox"])
    engine.classify("three*0.5+seven", ["the fox"])
    assert engine.step()


@given(st.integers(0, 2**31 - 1), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_a_bound_patch_is_finite_or_refused(tiny_tasks: Any, seed: int, dtype: str) -> None:
    backbone = _backbones(tiny_tasks, dtype)
    generator = torch.Generator().manual_seed(seed)
    slot = backbone.arena.slots["encoder.layer.0.output.dense.weight"]
    indices = torch.randint(slot.numel, (5,), generator=generator).unique()
    values = torch.randn(len(indices), generator=generator) * 10.0 ** float(
        torch.randint(0, 39, (), generator=generator)
    )
    delta = Delta(
        {"encoder.layer.0.output.dense.weight": ParameterDelta(slot.shape, indices, values)}, "add", "float32"
    )
    base = backbone.arena.view("encoder.layer.0.output.dense.weight").view(-1)[indices].float()
    fits = bool((base + values).to(slot.dtype).isfinite().all())
    patch = make_patch(backbone, delta)
    if fits:
        refuse_overflow(backbone.arena, patch)
        return
    with pytest.raises(DeltaError, match=r"encoder\.layer\.0\.output\.dense\.weight"):
        refuse_overflow(backbone.arena, patch)


_LOADED: dict[str, Any] = {}


def _backbones(tiny_tasks: Any, dtype: str) -> Any:
    if dtype not in _LOADED:
        _LOADED[dtype] = load_backbone(str(tiny_tasks.folder), dtype=dtype)
    return _LOADED[dtype]
