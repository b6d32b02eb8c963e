from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine
from sparsehub.errors import RequestError
from sparsehub.package import read_package


@pytest.fixture(scope="module")
def engine(tiny_tasks: Any, suite: Mapping[str, Path]) -> Engine:
    engine = Engine(load_backbone(str(tiny_tasks.folder)))
    for package in suite.values():
        engine.add(read_package(package))
    engine.add(tiny_tasks.read("generous", max_length=1024, seed=41))
    return engine


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("three", "the fox"),
        ("three", {"text": "the fox"}),
        ("pair", ["the fox", "a dog"]),
        ("pair", ("the fox", "a dog")),
        ("pair", {"text_b": "a dog", "text_a": "the fox"}),
        ("choice", {"text": "the fox", "choice1": "a", "choice2": "b"}),
        ("words", "the quick fox"),
        ("words", ["the", "quick", "fox"]),
        ("words", {"text": ["the", "quick", "fox"]}),
    ],
)
def test_an_input_is_a_text_a_pair_or_an_object(engine: Engine, name: str, item: Any) -> None:
    ticket = engine.classify(name, [item])
    engine.step()
    found = ticket.futures[0].result(0)
    assert (len(found.words) if name == "words" else bool(found.scores)) == (3 if name == "words" else True)


@pytest.mark.parametrize(
    ("name", "item", "message"),
    [
        ("three", "", "'text' is empty"),
        ("three", " \n\t\u00a0", "'text' is empty"),
        ("three", "half \ud83d of it", "half of a surrogate pair"),
        ("three", 5, "'text' is no text; found: int"),
        ("three", None, "'text' is no text; found: NoneType"),
        ("three", ["the fox"], "'text' is no text; found: list"),
        ("three", {"txt": "the fox"}, "has other fields; found: txt; expected: text"),
        ("three", {"text": "the fox", "more": "a"}, "has other fields"),
        ("three", {}, "has other fields"),
        ("pair", "the fox", "does not fit this task; found: str; .*or a list of two strings"),
        ("pair", ["the fox"], "does not fit this task"),
        ("pair", ["the fox", "a", "b"], "does not fit this task"),
        ("three", "\u0000\u200b\ufeff", "'text' is empty"),
        ("words", ["\u200b"], "is empty"),
        ("pair", ["the fox", " "], "'text_b' is empty"),
        ("pair", ["the fox", 1], "'text_b' is no text"),
        ("choice", ["a", "b", "c"], "an object with text, choice1, choice2"),
        ("choice", {"text": "a", "choice1": "b"}, "has other fields"),
        ("words", [], "is empty"),
        ("words", ["the", ""], "is empty"),
        ("words", ["the", 3], "is no text"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(engine: Engine, name: str, item: Any, message: str) -> None:
    good: Any = {"pair": ["a", "b"], "choice": {"text": "a", "choice1": "b", "choice2": "c"}}.get(name, "the fox")
    with pytest.raises(RequestError, match=f"input 1.*{message}"):
        engine.classify(name, [good, item])
    assert engine.waiting == 0


def test_no_inputs_are_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="the input is empty"):
        engine.classify("three", [])
    with pytest.raises(RequestError, match="the input is empty"):
        engine.embed(None, [])


def test_an_over_long_input_is_refused_or_cut(engine: Engine) -> None:
    with pytest.raises(RequestError, match=r"input 1 is too long; found: 102 tokens; expected: at most 48"):
        engine.classify("three", ["the", "the " * 100])
    cut, exact = engine.classify("three", ["the " * 100], truncate=True), engine.classify("three", ["the " * 46])
    assert cut.tokens == exact.tokens == 48
    while engine.step():
        pass
    assert cut.futures[0].result(0).scores == pytest.approx(exact.futures[0].result(0).scores, abs=1e-5)


def test_the_backbones_own_limit_holds_where_a_task_names_a_larger_one(engine: Engine) -> None:
    with pytest.raises(RequestError, match="expected: at most 64"):
        engine.classify("generous", ["the " * 100])
    with pytest.raises(RequestError, match="expected: at most 64"):
        engine.embed("generous", ["the " * 100])
    ticket = engine.classify("generous", ["the " * 100], truncate=True)
    assert ticket.tokens == 64
    engine.step()
    assert ticket.futures[0].result(0).label


def test_embeddings_have_the_limit_of_their_task_or_of_the_backbone(engine: Engine) -> None:
    assert engine.max_tokens == 64
    with pytest.raises(RequestError, match="at most 48"):
        engine.embed("three", ["the " * 50])
    with pytest.raises(RequestError, match="at most 64"):
        engine.embed(None, ["the " * 70])
    assert engine.embed(None, ["the " * 70], truncate=True).tokens == 64
    while engine.step():
        pass


def test_odd_texts_are_answered(engine: Engine) -> None:
    texts = ["a\u0000", "é" * 10, "\U0001f600", "[CLS] [PAD] [SEP]", "a" * 1000]
    ticket = engine.classify("three", texts, truncate=True)
    while engine.step():
        pass
    found = [future.exception(0) or future.result(0).label for future in ticket.futures]
    assert all(isinstance(label, str) for label in found), found
