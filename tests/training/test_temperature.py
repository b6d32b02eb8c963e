"""The loss at the temperature that suits it, and the runs that a better score alone does not decide."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparsehub.package.task_spec import MULTI_LABEL, PROBLEM_TYPES, TEXT_CLASSIFICATION, TaskSpec
from sparsehub.training import TrainConfig, fit, trainer
from sparsehub.training.metrics import mean_loss
from sparsehub.training.temperature import calibrated_loss

LABELS = ("a", "b", "c")
LOGITS = arrays(np.float64, (12, 3), elements=st.integers(-8, 8).map(lambda half: half / 2))


def _task(kind: str) -> TaskSpec:
    return TaskSpec(kind, LABELS, PROBLEM_TYPES[kind], ("text",), "label", 24, ("accuracy",))


def _targets(task: TaskSpec) -> Any:
    numbers = np.arange(12) % 3
    return np.eye(3)[numbers] if task.kind == MULTI_LABEL else numbers


@pytest.mark.parametrize("kind", [TEXT_CLASSIFICATION, MULTI_LABEL])
@given(logits=LOGITS)
def test_it_is_the_smallest_of_many_temperatures(kind: str, logits: Any) -> None:
    task = _task(kind)
    targets = _targets(task)
    smallest = min(mean_loss(task, logits * 2.0**power, targets) for power in np.linspace(-17, 17, 681))
    assert calibrated_loss(task, logits, targets) == pytest.approx(smallest, abs=2e-3)
    assert calibrated_loss(task, logits, targets) <= mean_loss(task, logits, targets) + 1e-4


@given(logits=LOGITS, surer=st.floats(0.25, 4))
def test_how_sure_a_model_is_does_not_move_it(logits: Any, surer: float) -> None:
    task = _task(TEXT_CLASSIFICATION)
    targets = _targets(task)
    found = calibrated_loss(task, logits * surer, targets)
    assert found == pytest.approx(calibrated_loss(task, logits, targets), abs=1e-3)


ROWS, RIGHT = 120, np.arange(120) % 3


def _logits(right: int, sure: float, sure_where_wrong: float) -> Any:
    """Of so many right answers and as many wrong ones as are left, with the lead that the first label has."""
    wrong = np.arange(ROWS) >= right
    lead = np.where(wrong, sure_where_wrong, sure)
    return np.eye(3)[np.where(wrong, (RIGHT + 1) % 3, RIGHT)] * lead[:, None]


@pytest.mark.parametrize(
    ("logits", "better"),
    [
        (_logits(100, 9.0, 9.0), True),  # surer than the rows allow, as after many epochs, but far more often right
        (_logits(91, 2.0, 8.0), False),  # once more right than the probe, and surest where it is wrong
        (_logits(89, 2.0, 0.1), False),  # a smaller loss, and less often right: scores decide first
    ],
)
def test_a_better_score_counts_where_the_rows_are_explained_better_too(
    monkeypatch: pytest.MonkeyPatch, logits: Any, *, better: bool
) -> None:
    task, told = _task(TEXT_CLASSIFICATION), list[str]()
    start = _logits(90, 2.0, 2.0)
    probe = SimpleNamespace(
        metrics={"validation": {"accuracy": 90 / ROWS}},
        losses={"validation": mean_loss(task, start, RIGHT)},
        calibrated={"validation": calibrated_loss(task, start, RIGHT)},
    )
    data = SimpleNamespace(task=task, validation=SimpleNamespace(rows=[None] * ROWS))
    config = SimpleNamespace(metric=None, patience=0)
    job: Any = SimpleNamespace(probe=probe, data=data, config=config, report=told.append)
    score = trainer.choice(job, {"accuracy": float((logits.argmax(1) == RIGHT).mean())}, mean_loss(task, logits, RIGHT))
    outputs = {"validation": SimpleNamespace(logits=logits, targets=RIGHT)}
    monkeypatch.setattr(trainer, "evaluate", lambda *_: SimpleNamespace(outputs=outputs))
    found = trainer.improved(job, SimpleNamespace(state=SimpleNamespace(best_metric=score)))
    assert found is better
    by_luck = not better and score > 90 / ROWS
    assert [line.split(":")[0] for line in told] == ["a better score by luck"] * by_luck


def test_what_a_run_knows_of_its_probe_is_kept_for_the_next_start(make_config: Any, tmp_path: Path) -> None:
    config: TrainConfig = make_config(method="head", density=None, head="linear")
    fit(config, tmp_path / "run")

    kept = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert 0 < kept["calibrated"]["validation"] <= kept["losses"]["validation"] + 1e-6
