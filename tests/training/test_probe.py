"""The probe: exact heads, their strength, pair forms, and what training does with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsehub.errors import DataError, UsageError
from sparsehub.package import read_package
from sparsehub.package.task_spec import PROBLEM_TYPES, HeadSpec, TaskSpec
from sparsehub.training import TrainConfig, fit, train
from sparsehub.training.job import Job
from sparsehub.training.metrics import compute, mean_loss
from sparsehub.training.probe import SMALL, Frozen, fit_probe
from sparsehub.training.trainer import by_scores, choice, improved

Configure = Callable[..., TrainConfig]
HEAD = HeadSpec("linear", "mean", False, "joint")


@pytest.fixture
def make_config(make_config: Configure) -> Configure:
    """The same runs with the head that a kind has by default."""
    return lambda kind="text-classification", **changes: make_config(kind, **{"head": None, **changes})


def spec(kind: str, labels: tuple[str, ...], metrics: tuple[str, ...]) -> TaskSpec:
    choices = labels if kind == "multiple-choice" else ()
    return TaskSpec(kind, labels, PROBLEM_TYPES[kind], ("text",), "label", 24, metrics, choices, HEAD)


CLASSES = spec("text-classification", ("a", "b", "c"), ("accuracy", "macro_f1", "matthews"))


def made(rows: int, labels: int, seed: int = 0, width: int = 8) -> Frozen:
    """Features of very different scales, in which the label is seen."""
    numbers = np.random.default_rng(seed)
    targets = numbers.integers(0, labels, rows)
    centres = np.random.default_rng(99).normal(size=(labels, width))
    scale = 10.0 ** np.linspace(-3, 3, width)
    return Frozen((centres[targets] + 0.7 * numbers.normal(size=(rows, width))) * scale + scale, targets)


@pytest.mark.parametrize("labels", [2, 3])
def test_the_head_is_the_logistic_regression_on_standardised_features(labels: int) -> None:
    """The standardisation is inside weight and bias: scikit-learn's own pipeline gives the same probabilities."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    task = dataclasses.replace(CLASSES, labels=("a", "b", "c")[:labels])
    train_rows, validation = made(200, labels), made(SMALL, labels, 1)
    probe = fit_probe(task, {"train": train_rows, "validation": validation})
    logits = validation.rows @ probe.tensors["weight"].double().numpy().T + probe.tensors["bias"].double().numpy()
    found = torch.softmax(torch.from_numpy(logits), -1).numpy()
    near = []
    for strength in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        theirs = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        theirs.fit(train_rows.rows, train_rows.targets)
        near.append(float(np.abs(theirs.predict_proba(validation.rows) - found).max()))
    assert min(near) < 1e-3
    assert probe.metrics["validation"] == compute(task, logits, validation.targets)
    assert probe.losses["validation"] == pytest.approx(mean_loss(task, logits, validation.targets), abs=1e-3)


def test_the_strength_is_the_one_with_the_smallest_loss_on_validation() -> None:
    noise = np.random.default_rng(5)
    train_rows = Frozen(noise.normal(size=(60, 40)), noise.integers(0, 3, 60))
    validation = Frozen(noise.normal(size=(SMALL, 40)), noise.integers(0, 3, SMALL))
    probe = fit_probe(CLASSES, {"train": train_rows, "validation": validation})
    assert probe.tensors["weight"].abs().max() < 0.05  # labels by chance: the strongest regularisation


def test_training_starts_as_sure_of_its_own_rows_as_of_others() -> None:
    """Its labels are the probe's; its loss on the training rows is the one on rows that the probe has not seen."""
    train_rows = made(30, 3, width=20)
    train_rows = Frozen(train_rows.rows + 2 * np.random.default_rng(2).normal(size=(30, 20)), train_rows.targets)
    probe = fit_probe(CLASSES, {"train": train_rows})
    logits, start = (
        train_rows.rows @ head["weight"].double().numpy().T + head["bias"].double().numpy()
        for head in (probe.tensors, probe.start)
    )
    assert mean_loss(CLASSES, logits, train_rows.targets) < probe.held_out / 2
    assert mean_loss(CLASSES, start, train_rows.targets) == pytest.approx(probe.held_out, rel=1e-3)
    assert np.array_equal(logits.argmax(1), start.argmax(1)) and 0.1 < probe.modesty < 1


def test_a_probe_that_knows_nothing_leaves_a_head_through_which_gradients_pass() -> None:
    noise = np.random.default_rng(5)
    train_rows = Frozen(noise.normal(size=(60, 40)), noise.integers(0, 3, 60))
    assert fit_probe(CLASSES, {"train": train_rows}).modesty == pytest.approx(0.1, abs=1e-3)


def test_the_head_of_a_regression_starts_as_it_was_fitted() -> None:
    rows = made(40, 3)
    task = spec("regression", (), ("pearson", "spearman", "mse"))
    probe = fit_probe(task, {"train": Frozen(rows.rows, rows.targets.astype(float))})
    assert probe.modesty == 1.0 and torch.equal(probe.start["weight"], probe.tensors["weight"])


def test_few_validation_rows_leave_the_strength_to_cross_validation() -> None:
    train_rows, few = made(200, 3), made(10, 3, 1)
    with_few = fit_probe(CLASSES, {"train": train_rows, "validation": few})
    without = fit_probe(CLASSES, {"train": train_rows})
    assert torch.equal(with_few.tensors["weight"], without.tensors["weight"])
    assert with_few.held_out == without.held_out


def test_a_label_without_rows_is_never_the_answer() -> None:
    probe = fit_probe(CLASSES, {"train": made(100, 2)})
    scores = made(50, 2, 3).rows @ probe.tensors["weight"].double().numpy().T + probe.tensors["bias"].double().numpy()
    assert set(scores.argmax(-1)) <= {0, 1}


def test_one_label_alone_is_always_the_answer() -> None:
    rows = Frozen(np.ones((4, 3)), np.array([1, 1, 1, 1]))
    probe = fit_probe(CLASSES, {"train": rows})
    assert probe.tensors["bias"].argmax() == 1


def test_a_regression_is_a_ridge_and_a_choice_looks_at_differences() -> None:
    numbers = np.random.default_rng(0)
    rows, direction = numbers.normal(size=(300, 6)), numbers.normal(size=6)
    ridge = fit_probe(
        spec("regression", (), ("pearson", "spearman", "mse")), {"train": Frozen(rows, rows @ direction + 5)}
    )
    assert ridge.tensors["weight"].flatten().tolist() == pytest.approx(direction.tolist(), abs=0.05)
    assert float(ridge.tensors["bias"]) == pytest.approx(5, abs=0.05)
    choices = numbers.normal(size=(300, 3, 6))
    task = spec("multiple-choice", ("x", "y", "z"), ("accuracy",))
    right = (choices @ direction).argmax(1)
    probe = fit_probe(task, {"train": Frozen(choices, right), "test": Frozen(choices, right)})
    assert probe.metrics["test"]["accuracy"] > 0.95
    assert probe.tensors["weight"].shape == (1, 6)


@pytest.mark.parametrize("kind", ["text-classification", "regression", "multiple-choice"])
def test_a_package_of_the_head_alone(make_config: Configure, tmp_path: Path, kind: str) -> None:
    """A few kilobytes whose scores are the probe's own, with nothing in the backbone changed."""
    result = train(make_config(kind, method="head", density=None, out=str(tmp_path / "out")))
    package = read_package(tmp_path / "out")
    assert package.manifest.delta is None
    assert set(package.head) == {"weight", "bias"}
    assert not (tmp_path / "out" / "delta.safetensors").exists()
    baselines = result.manifest.training["baselines"]["validation"]
    assert set(baselines) == {"majority", "probe"}
    assert result.manifest.metrics["validation"] == pytest.approx(baselines["probe"], abs=1e-5)
    assert result.manifest.training["steps"] == 0
    assert result.package_bytes < 16_384


def test_the_run_starts_from_the_probe_and_selection_sees_it(
    make_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsehub.training import fitting

    seen: list[Job] = []
    prepare = fitting.prepare
    monkeypatch.setattr(fitting, "prepare", lambda job: seen.append(job) or prepare(job))
    fit(make_config(epochs=1), tmp_path / "run")
    (job,) = seen
    assert job.probe is not None
    heads = {name: p for name, p in job.task_model.model.named_parameters() if name in job.task_model.head}
    assert set(heads) == {"weight", "bias"}


def test_a_run_that_improves_nothing_ends_with_the_probe_and_no_delta(make_config: Configure, tmp_path: Path) -> None:
    """A learning rate that spoils everything: "before the first step" is the best epoch."""
    config = make_config(
        learning_rate=5.0, head_learning_rate=5.0, epochs=2, metric="accuracy", out=str(tmp_path / "out")
    )
    result = train(config)
    probe = result.manifest.training["baselines"]["validation"]["probe"]
    if result.manifest.delta is None:
        assert result.manifest.training["chosen"] == "before the first step"
        assert result.manifest.metrics["validation"] == pytest.approx(probe, abs=1e-5)
    else:
        assert result.manifest.metrics["validation"]["accuracy"] >= probe["accuracy"]


def test_the_backbone_is_as_it_was_after_a_run_that_improved_nothing(
    make_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsehub.training import fitting

    monkeypatch.setattr(fitting, "improved", lambda *_: False)
    fitted = fit(make_config(epochs=1), tmp_path / "run")
    again = fit(make_config(method="head", density=None), tmp_path / "again")
    assert fitted.delta is None and again.delta is None
    assert fitted.task_model.backbone.arena.digest() == again.task_model.backbone.arena.digest()
    assert all(torch.equal(fitted.head[name], again.head[name]) for name in ("weight", "bias"))
    assert fitted.metrics == again.metrics


def test_a_resumed_run_reads_its_probe(make_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsehub.training import probe

    first = fit(make_config(method="head", density=None), tmp_path / "run")
    monkeypatch.setattr(probe, "frozen_features", lambda *_: pytest.fail("the features were computed again"))
    again = fit(make_config(method="head", density=None), tmp_path / "run")
    assert all(torch.equal(first.head[name], again.head[name]) for name in ("weight", "bias"))


PAIR_ROWS = [
    {"a": a, "b": b, "label": "same" if a == b else "other"}
    for a in ("a good film", "the king of spain", "an awful ending", "lovely to watch")
    for b in ("a good film", "the king of spain", "an awful ending", "lovely to watch")
]


def test_the_pair_form_is_the_better_probes(make_config: Configure, tmp_path: Path) -> None:
    """Whether two texts are the same is seen in |u - v|, and hardly in one sequence under random weights."""
    config = make_config(train=PAIR_ROWS * 4, validation=None, text=("a", "b"), method="head", density=None)
    fitted = fit(config, tmp_path / "run")
    assert fitted.data.task.head == HeadSpec("linear", "mean", False, "separate")
    joint = fit(dataclasses.replace(config, pair="joint"), tmp_path / "joint")
    assert joint.data.task.head.pair == "joint"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "token-classification", "head": "linear"}, "has no linear head"),
        ({"head": "transformers", "pooling": "max"}, "pooling belongs to a linear head"),
        ({"pair": "separate"}, "needs two text fields"),
        ({"pair": "cosine", "text": ("a", "b")}, "the cosine of a pair is for a regression"),
        ({"kind": "text-generation", "method": "head"}, "has no head of its own"),
        ({"method": "head", "density": 0.01}, "nothing in the backbone changes; to do: leave density out"),
    ],
)
def test_settings_that_do_not_fit_the_head_are_refused(changes: dict[str, Any], problem: str) -> None:
    given: dict[str, Any] = {"backbone": "b", "kind": "text-classification", "name": "t", "train": "t.jsonl"}
    with pytest.raises(UsageError, match=problem):
        TrainConfig(**{**given, "text": ("text",), "out": "o", **changes})


@dataclasses.dataclass(frozen=True)
class Rows:
    rows: list[int]


def job_of(rows: int | None, **config: Any) -> Any:
    """As much of a job as the choice of an epoch looks at."""
    settings = {"metric": None, "patience": 0, **config}
    validation = None if rows is None else Rows(list(range(rows)))
    return type(
        "J", (), {"config": type("C", (), settings), "data": type("D", (), {"validation": validation, "task": CLASSES})}
    )


def test_scores_choose_the_epoch_where_there_are_rows_enough_or_where_they_are_asked_for() -> None:
    assert by_scores(job_of(SMALL))
    assert not by_scores(job_of(SMALL - 1))
    assert not by_scores(job_of(None))
    assert by_scores(job_of(5, metric="accuracy"))
    assert by_scores(job_of(5, patience=2))


def test_equal_scores_are_decided_by_the_loss_and_no_loss_outweighs_a_score() -> None:
    job = job_of(SMALL)
    assert choice(job, {"accuracy": 0.5}, 0.2) > choice(job, {"accuracy": 0.5}, 0.3)
    assert choice(job, {"accuracy": 0.500001}, 1e9) > choice(job, {"accuracy": 0.5}, 0.0)
    assert choice(job, {"accuracy": 0.5}, 1.0) > choice(job, {"accuracy": 0.5}, float("nan"))


def test_few_rows_keep_the_last_epoch(make_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same falling scores that choose the first epoch where the metric is asked for."""
    from sparsehub.training import trainer

    falling = iter(range(1000, 0, -1))
    monkeypatch.setattr(trainer, "compute", lambda *_: {"accuracy": next(falling) / 1000})
    monkeypatch.setattr(trainer, "improved", improved)
    config = make_config(epochs=3, head="transformers")
    fitted = fit(config, tmp_path / "run")
    monkeypatch.undo()
    last = max((tmp_path / "run").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    from safetensors.torch import load_file

    values = load_file(last / "model.safetensors")["values"]
    assert fitted.delta is not None
    kept = torch.cat([fitted.delta.parameters[name].values for name in sorted(fitted.delta.parameters)])
    assert torch.equal(kept, values[values != 0])


def test_a_head_of_transformers_alone_is_packaged_where_it_is_asked_for(make_config: Configure, tmp_path: Path) -> None:
    config = make_config("token-classification", method="head", density=None, epochs=1, out=str(tmp_path / "out"))
    assert train(config).manifest.delta is None
    with pytest.raises(DataError, match="nothing to package"):
        train(make_config("token-classification", density=0.0, epochs=1, out=str(tmp_path / "other")))
