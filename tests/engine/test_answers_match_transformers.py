"""Whatever runs together, a row's answer is that of the materialised model under plain transformers."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsehub.backbone import load_backbone
from sparsehub.engine import BatchReport, Engine
from sparsehub.errors import UnhealthyError
from sparsehub.package import read_package

SENTENCE = "the quick brown fox jumps over lazy dog good film great cast bad ending who wrote book river north"
Close = Callable[..., bool]
Reference = Callable[[str], Callable[[Any], list[float]]]
NAMES = ["three", "seven", "pair", "rating", "choice", "words", "several"]


def sentence(choices: random.Random, longest: int = 10) -> str:
    return " ".join(choices.choices(SENTENCE.split(), k=choices.randint(1, longest)))


def item_for(name: str, choices: random.Random) -> Any:
    """An input that fits the task of this name."""
    if name == "pair":
        return [sentence(choices, 6), sentence(choices, 6)]
    if name == "choice":
        return {field: sentence(choices, 6) for field in ("text", "choice1", "choice2")}
    return sentence(choices)


@pytest.fixture(scope="module")
def reports() -> list[BatchReport]:
    return []


@pytest.fixture(scope="module")
def engine(tiny_tasks: Any, suite: Mapping[str, Path], reports: list[BatchReport]) -> Iterator[Engine]:
    engine = Engine(load_backbone(str(tiny_tasks.folder)), observer=SimpleNamespace(observe=reports.append))
    for package in suite.values():
        engine.add(read_package(package))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def reference_of(tiny_tasks: Any, suite: Mapping[str, Path]) -> Reference:
    """By a task's name, what plain transformers answers to an input."""
    return functools.cache(lambda name: tiny_tasks.reference(suite[name]))


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_answers_as_its_materialised_model(
    name: str, engine: Engine, reference_of: Reference, close: Close
) -> None:
    choices = random.Random(name)
    items = [item_for(name, choices) for _ in range(12)]
    ticket = engine.classify(name, items)
    found = [future.result(30) for future in ticket.futures]
    expected = [reference_of(name)(item) for item in items]
    assert all(close(answer, scores) for answer, scores in zip(found, expected, strict=True))
    assert len({tuple(round(score, 3) for score in scores) for scores in expected}) > 6, "the task tells rows apart"


def test_the_label_is_the_one_of_the_best_score(engine: Engine, reference_of: Reference) -> None:
    for text in ("the quick fox", "a bad ending", "who wrote"):
        answer = engine.classify("seven", [text]).futures[0].result(30)
        scores = reference_of("seven")(text)
        assert answer.label == f"label{scores.index(max(scores))}"
        assert sum(answer.scores) == pytest.approx(1)


def test_rows_of_many_tasks_from_many_threads_each_get_their_own_tasks_answer(
    engine: Engine, reference_of: Reference, close: Close, reports: list[BatchReport]
) -> None:
    asked_before = len(reports)

    def client(seed: int) -> list[tuple[str, Any, Any]]:
        choices, asked = random.Random(seed), []
        for _ in range(12):
            name = choices.choice(NAMES)
            items = [item_for(name, choices) for _ in range(choices.randint(1, 3))]
            ticket = engine.classify(name, items)
            assert ticket.task is not None and ticket.task.name == name
            asked += [(name, item, future) for item, future in zip(items, ticket.futures, strict=True)]
        return [(name, item, future.result(60)) for name, item, future in asked]

    with ThreadPoolExecutor(16) as pool:
        results = [result for own in pool.map(client, range(16)) for result in own]
    wrong = [name for name, item, answer in results if not close(answer, reference_of(name)(item))]
    assert wrong == []
    batches = reports[asked_before:]
    assert sum(report.rows for report in batches) == len(results)
    assert max(report.rows for report in batches) > 3, "rows were run together"
    assert any(report.switches for report in batches)


def test_without_a_thread_a_caller_steps_by_itself(tiny_tasks: Any, suite: Mapping[str, Path]) -> None:
    engine = Engine(load_backbone(str(tiny_tasks.folder)))
    engine.add(read_package(suite["three"]))
    ticket = engine.classify("three", ["the fox"])
    assert engine.step() and not engine.step()
    assert ticket.futures[0].result(0).label


def test_a_with_block_starts_and_stops_the_engine(tiny_tasks: Any, suite: Mapping[str, Path]) -> None:
    with Engine(load_backbone(str(tiny_tasks.folder))) as engine:
        engine.add(read_package(suite["three"]))
        assert engine.classify("three", ["the fox"]).futures[0].result(30).label
    assert not engine.healthy
    with pytest.raises(UnhealthyError):
        engine.classify("three", ["the fox"])


@pytest.mark.parametrize("texts", [["the fox"], ["the fox", "who wrote the book about the river", "a"]])
def test_embeddings_are_the_mean_of_the_token_states_normalised(
    texts: list[str], engine: Engine, tiny_tasks: Any, close: Close
) -> None:
    import transformers

    model = transformers.AutoModel.from_pretrained(tiny_tasks.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tasks.folder)
    ticket = engine.embed(None, texts)
    for text, future in zip(texts, ticket.futures, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert close(future.result(30), (mean / mean.norm()).tolist())
    assert ticket.task is None


def test_embeddings_of_a_task_are_made_with_its_weights(engine: Engine, tiny_tasks: Any, suite: Any) -> None:
    import transformers

    tiny_tasks.reference(suite["three"])  # materialises it
    folder = suite["three"].with_name(suite["three"].name + "-materialised")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval().bert
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        mean = model(**tokenizer("the fox", return_tensors="pt")).last_hidden_state[0].mean(0)
    found = engine.embed("three", ["the fox"]).futures[0].result(30)
    assert found == pytest.approx((mean / mean.norm()).tolist(), abs=1e-4)
    assert found != pytest.approx(engine.embed(None, ["the fox"]).futures[0].result(30), abs=1e-3)


def test_the_arena_is_the_loaded_backbone_after_all_this(tiny_tasks: Any, suite: Mapping[str, Path]) -> None:
    engine = Engine(load_backbone(str(tiny_tasks.folder)))
    base = engine.backbone.arena.digest()
    for package in suite.values():
        engine.add(read_package(package))
    engine.start()
    tickets = [engine.classify(name, [item_for(name, random.Random(1))]) for name in [*suite, *suite]]
    for ticket in tickets:
        ticket.futures[0].result(30)
    engine.stop()
    assert engine.backbone.arena.digest() == base
