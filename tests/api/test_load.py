"""A package as a model of transformers or sentence-transformers, beside the materialised folder and the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsehub
from sparsehub.errors import NotFoundError, UsageError
from tests.support.tiny_tasks import TinyTasks

TEXTS = ["who wrote the book", "a good film", "where is the city that never sleeps"]


@pytest.fixture(scope="module")
def tasks(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> TinyTasks:
    return TinyTasks(tiny_checkpoint("bert"), tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def engine(tasks: TinyTasks) -> Iterator[sparsehub.Engine]:
    with sparsehub.Engine(sparsehub.load_backbone(tasks.folder)) as engine:
        for name in ("topic", "score"):
            kind = "regression" if name == "score" else "text-classification"
            engine.add(sparsehub.read_package(str(tasks.write(name, kind))))
        yield engine


def options(tasks: TinyTasks) -> dict[str, Any]:
    return {"backbone": tasks.folder}


def test_load_gives_transformers_own_class(tasks: TinyTasks, engine: sparsehub.Engine) -> None:
    from transformers import AutoTokenizer, BertForSequenceClassification

    model = sparsehub.load(tasks.write("topic"), **options(tasks))
    assert type(model) is BertForSequenceClassification
    assert not model.training
    batch = AutoTokenizer.from_pretrained(tasks.folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        probabilities = model(**batch).logits.softmax(-1)
    served = torch.tensor([answer.scores for answer in engine.classify("topic", TEXTS).results()])
    torch.testing.assert_close(probabilities, served, atol=1e-5, rtol=0)


def test_load_by_a_reference_in_a_hub(tasks: TinyTasks, tmp_path: Path) -> None:
    package = tasks.write("topic")
    hub = sparsehub.open_hub(tmp_path / "hub")
    hub.publish(str(package))
    here = sparsehub.load(package, **options(tasks)).state_dict()
    for place in (hub, str(tmp_path / "hub"), tmp_path / "hub"):
        found = sparsehub.load("topic@1.0.0", hub=place, **options(tasks)).state_dict()
        assert all(torch.equal(here[name], found[name]) for name in here)
    with pytest.raises(NotFoundError):
        sparsehub.load("tpoic", hub=hub, **options(tasks))


def test_the_backbone_that_a_package_names_is_the_default(tasks: TinyTasks) -> None:
    package = sparsehub.read_package(tasks.write("topic"))
    assert package.manifest.backbone.id
    with pytest.raises(sparsehub.errors.SparsehubError):  # it is called `tiny`, and there is no such thing
        sparsehub.load(tasks.write("topic"))


def test_a_sentence_transformer_encodes_as_the_engine_embeds(tasks: TinyTasks, engine: sparsehub.Engine) -> None:
    from sentence_transformers import SentenceTransformer

    model = sparsehub.load(tasks.write("topic"), library="sentence-transformers", **options(tasks))
    assert isinstance(model, SentenceTransformer)
    ours = torch.tensor(engine.embed("topic", TEXTS).results())
    torch.testing.assert_close(torch.tensor(model.encode(TEXTS)), ours, atol=1e-5, rtol=0)
    plain = torch.tensor(engine.embed(None, TEXTS).results())
    assert (ours - plain).abs().max() > 1e-3  # the task changes what is embedded


def test_an_unknown_library_is_refused(tasks: TinyTasks) -> None:
    with pytest.raises(UsageError, match="did you mean 'transformers'"):
        sparsehub.load(tasks.write("topic"), library="transformer", **options(tasks))


def test_a_pipeline_gives_the_labels_of_the_engine(tasks: TinyTasks, engine: sparsehub.Engine) -> None:
    found = sparsehub.pipeline(tasks.write("topic"), **options(tasks))(TEXTS)
    answers = engine.classify("topic", TEXTS).results()
    assert [row["label"] for row in found] == [answer.label for answer in answers]
    assert [row["score"] for row in found] == pytest.approx([max(answer.scores) for answer in answers], abs=1e-5)


def test_a_pipeline_of_a_regression_gives_its_number(tasks: TinyTasks, engine: sparsehub.Engine) -> None:
    found = sparsehub.pipeline(tasks.write("score", "regression"), **options(tasks))(TEXTS)
    values = [answer.value for answer in engine.classify("score", TEXTS).results()]
    assert [row["score"] for row in found] == pytest.approx(values, abs=1e-5)


def test_a_pipeline_cuts_what_is_too_long(tasks: TinyTasks) -> None:
    [row] = sparsehub.pipeline(tasks.write("topic"), **options(tasks))(["the city " * 500])
    assert row["label"].startswith("label")


def test_a_pipeline_of_words_and_of_text(tasks: TinyTasks, tiny_checkpoint: Callable[[str], Path]) -> None:
    found = sparsehub.pipeline(tasks.write("words", "token-classification"), **options(tasks))(TEXTS[0])
    assert {row["entity"] for row in found} <= {"label0", "label1", "label2"}
    decoder = TinyTasks(tiny_checkpoint("gpt2"), tasks.root)
    package = decoder.write("text", "text-generation")
    [said] = sparsehub.pipeline(package, backbone=decoder.folder)("who wrote", max_new_tokens=4, do_sample=False)
    assert said["generated_text"].startswith("who wrote")


def test_a_multiple_choice_has_no_pipeline(tasks: TinyTasks) -> None:
    package = tasks.write("choice", "multiple-choice")
    with pytest.raises(UsageError, match="no pipeline"):
        sparsehub.pipeline(package, **options(tasks))
    with pytest.raises(UsageError, match="no sentence embeddings"):
        sparsehub.load(package, library="sentence-transformers", **options(tasks))
