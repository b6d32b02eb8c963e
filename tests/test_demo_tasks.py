"""The demo's tasks on the real backbone, trained for less time: the README's sentences get their right answers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sparsehub
from sparsehub.cli.demo import TASKS
from sparsehub.package.outputs import Prediction
from sparsehub.training import TrainConfig, TrainResult, train

ROOT = Path(__file__).parent.parent
SHORTER: dict[str, dict[str, Any]] = {
    "topic": {"epochs": 3, "layers": "last:3", "calibration_batches": 6},
    "urgency": {"method": "head"},
}
# What is right for the sentences of README.md. A text may be about two things: either label is right then.
RIGHT = {
    "My parcel is a week late": {"delivery_delay"},
    "Please close my account": {"cancel_subscription", "account_access"},
}
URGENT, CALM = "The kitchen is on fire", "Thanks, all is well"

pytestmark = pytest.mark.slow


def trained(name: str, backbone: str, folder: Path) -> TrainResult:
    """A package as the demo trains it, at less cost."""
    task, data = next(task for task in TASKS if task.name == name), ROOT / "examples" / "support" / name
    return train(
        TrainConfig(
            backbone=backbone,
            kind=task.kind,
            name=name,
            text=task.text,
            train=str(data / "train.jsonl"),
            validation=str(data / "validation.jsonl"),
            test=str(data / "test.jsonl"),
            out=str(folder / name),
            device="cpu",
            **SHORTER[name],
        )
    )


@pytest.fixture(scope="module")
def topic(real_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return trained("topic", real_backbone, tmp_path_factory.mktemp("demo"))


def answers(backbone: str, result: TrainResult, texts: Sequence[str]) -> list[Prediction]:
    with sparsehub.Engine(sparsehub.load_backbone(backbone)) as engine:
        engine.add(sparsehub.read_package(result.folder))
        return engine.classify(result.manifest.name, list(texts)).results()


def readme_inputs(model: str) -> list[str]:
    """The texts that README.md posts to a task."""
    bodies = re.findall(r"-d '(\{.*?\})'", (ROOT / "README.md").read_text(encoding="utf-8"))
    return [text for body in map(json.loads, bodies) if body["model"] == model for text in body["input"]]


def test_topic_beats_the_probe_that_it_started_from(topic: TrainResult) -> None:
    manifest = topic.manifest
    assert manifest.delta is not None
    assert manifest.metrics["test"]["accuracy"] > manifest.training["baselines"]["test"]["probe"]["accuracy"]


def test_the_sentences_of_the_readme_get_their_right_labels(real_backbone: str, topic: TrainResult) -> None:
    texts = readme_inputs("topic")
    assert set(texts) == set(RIGHT)
    for text, answer in zip(texts, answers(real_backbone, topic, texts), strict=True):
        assert answer.label in RIGHT[text], text


def test_a_fire_is_more_urgent_than_thanks(real_backbone: str, tmp_path: Path) -> None:
    assert readme_inputs("urgency") == [URGENT, CALM]
    urgent, calm = answers(real_backbone, trained("urgency", real_backbone, tmp_path), [URGENT, CALM])
    assert urgent.value is not None and calm.value is not None
    assert urgent.value > calm.value + 0.5
