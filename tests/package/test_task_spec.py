from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sparsehub.errors import ManifestError
from sparsehub.package.manifest import Manifest, check_manifest, check_name, check_version, parse_manifest
from sparsehub.package.task_spec import HEADED_KINDS, KINDS, HeadSpec, TaskSpec

GOLDEN = Path(__file__).parents[1] / "golden" / "package" / "sparsehub.json"


@pytest.fixture
def manifest() -> Manifest:
    return parse_manifest(GOLDEN.read_bytes())


@pytest.mark.parametrize("name", ["a", "sst2", "a-b_c.d", "0", "x" * 96])
def test_names_of_tasks(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", ".a", "a.", "a..b", "a/b", "a@1", "ä", "a\n", "x" * 97])
def test_names_that_no_task_may_have(name: str) -> None:
    with pytest.raises(ManifestError, match="not a task name"):
        check_name(name)


@pytest.mark.parametrize("version", ["1", "1.0.0", "1.0.0-rc.1+build.5", "Final", "x" * 64])
def test_versions(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["", "-1", "1.", "1..0", "1/0", "1 0", "sha256:00", "1_0", "ä", "1\n", "x" * 65])
def test_versions_that_are_none(version: str) -> None:
    with pytest.raises(ManifestError, match="not a version"):
        check_version(version)


def spec(kind: str, labels: tuple[str, ...], problem_type: str, choices: tuple[str, ...] = ()) -> TaskSpec:
    return TaskSpec(kind, labels, problem_type, ("text",), "label", 128, ("accuracy",), choices)


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        (spec("text-classification", ("a", "b", "c"), "single_label_classification"), 3),
        (spec("regression", (), "regression"), 1),
        (spec("multiple-choice", ("a", "b"), "single_label_classification", ("a", "b")), 1),
        (spec("token-classification", ("O", "B", "I"), "single_label_classification"), 3),
    ],
)
def test_every_kind_of_task_has_its_width(manifest: Manifest, task: TaskSpec, outputs: int) -> None:
    check_manifest(dataclasses.replace(manifest, task=task))
    assert task.num_outputs == outputs


def test_a_multi_label_task_has_a_threshold_for_each_label(manifest: Manifest) -> None:
    newer = dataclasses.replace(manifest, format_version=2)
    task = spec("multi-label-classification", ("a", "b"), "multi_label_classification")
    sound = dataclasses.replace(task, thresholds=(0.5, 0.25))
    check_manifest(dataclasses.replace(newer, task=sound))
    assert (sound.num_outputs, sound.label_columns) == (2, ("label",))
    assert dataclasses.replace(sound, label_field="a, b").label_columns == ("a", "b")
    for wrong in (task, dataclasses.replace(task, thresholds=(0.5,)), dataclasses.replace(task, thresholds=(0.5, 1.5))):
        with pytest.raises(ManifestError, match="threshold"):
            check_manifest(dataclasses.replace(newer, task=wrong))
    other = dataclasses.replace(manifest.task, thresholds=(0.5,) * len(manifest.task.labels))
    with pytest.raises(ManifestError, match="threshold"):
        check_manifest(dataclasses.replace(newer, task=other))
    with pytest.raises(ManifestError, match="format 1 has no multi-label"):
        check_manifest(dataclasses.replace(manifest, task=sound))


def test_an_embedding_has_pooling_and_nothing_else(manifest: Manifest) -> None:
    newer = dataclasses.replace(manifest, format_version=2)
    task = TaskSpec("embedding", (), "similarity", ("a", "b", "c"), "", 128, ("ndcg_at_10",))
    assert task.head == HeadSpec("none", "mean", normalize=True) and task.reads_alone
    written = dataclasses.replace(newer, task=task)
    assert parse_manifest(written.to_bytes()).task == task
    for wrong in (
        {"head": HeadSpec("none")},
        {"head": HeadSpec("none", "mean")},
        {"head": HeadSpec("none", "mean", normalize=True, pair="joint")},
        {"head": HeadSpec("linear", "mean", normalize=True, pair="joint")},
        {"labels": ("a", "b")},
        {"text_fields": ("a", "b", "c", "d")},
    ):
        with pytest.raises(ManifestError):
            check_manifest(dataclasses.replace(newer, task=dataclasses.replace(task, **wrong)))
    with pytest.raises(ManifestError, match="format 1 has no embedding"):
        check_manifest(dataclasses.replace(manifest, task=task))


def test_every_kind_is_tried_above() -> None:
    headed = {"text-classification", "regression", "multiple-choice", "token-classification"}
    headed.add("multi-label-classification")
    assert set(HEADED_KINDS) == headed and set(KINDS) == {*headed, "text-generation", "embedding"}


def test_a_text_generation_has_one_text_and_no_labels(manifest: Manifest) -> None:
    task = dataclasses.replace(spec("text-generation", (), "next_token"), text_fields=("text",), label_field="")
    check_manifest(dataclasses.replace(manifest, task=task))
    for wrong in ({"labels": ("a", "b")}, {"text_fields": ("a", "b")}, {"problem_type": "regression"}):
        with pytest.raises(ManifestError):
            check_manifest(dataclasses.replace(manifest, task=dataclasses.replace(task, **wrong)))


@pytest.mark.parametrize(
    "task",
    [
        spec("regression", ("score",), "regression"),
        spec("multiple-choice", ("a", "b"), "single_label_classification"),
        spec("multiple-choice", ("a", "b"), "single_label_classification", ("b", "a")),
        spec("text-classification", (), "single_label_classification"),
    ],
)
def test_labels_that_do_not_fit_the_kind_are_refused(manifest: Manifest, task: TaskSpec) -> None:
    with pytest.raises(ManifestError):
        check_manifest(dataclasses.replace(manifest, task=task))
