"""How long a run is where nobody says it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsehub.settings import settings_of
from sparsehub.training import TrainConfig, fit
from sparsehub.training.job import EPOCHS, MOST_EPOCHS, STEPS, Job


@pytest.mark.parametrize(
    ("told", "rows", "from_a_probe", "epochs"),
    [
        (None, 288, True, 5.0),
        (None, 48, True, 20.0),  # three steps an epoch: sixty
        (None, 16, True, 20.0),  # one step an epoch
        (None, 97, True, 9.0),  # seven: sixty-three
        (None, 16, False, 5.0),
        (2.5, 16, True, 2.5),
    ],
)
def test_few_rows_are_gone_through_more_often(told: float | None, rows: int, from_a_probe: bool, epochs: float) -> None:
    config = SimpleNamespace(epochs=told, accumulation=1, batch_size=16)
    data = SimpleNamespace(train=SimpleNamespace(rows=range(rows)))
    probe: Any = object() if from_a_probe else None
    job: Any = Job(config, data, None, None, Path(), SimpleNamespace(count=1), print, probe)  # type: ignore[arg-type]
    assert job.epochs == epochs


def test_the_default_is_told_as_it_is() -> None:
    (epochs,) = (setting for setting in settings_of(TrainConfig) if setting.name == "epochs")
    told = f"{EPOCHS:g}; from a probe up to {MOST_EPOCHS:g}, where {EPOCHS:g} make fewer than {STEPS} steps"
    assert epochs.default_text == told


def test_a_run_says_that_it_goes_on_for_longer(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    said: list[str] = []
    settings: dict[str, Any] = {"head": None, "validation": None, "batch_size": 16}
    fitted = fit(make_config(epochs=None, **settings), tmp_path / "run", report=said.append)
    assert fitted.training["epochs"] > 5
    assert f"few rows: {fitted.training['epochs']:g} epochs in place of 5" in said
    said.clear()
    fit(make_config(epochs=None, **settings, method="head", density=None), tmp_path / "head", report=said.append)
    fit(make_config(epochs=5, **settings), tmp_path / "told", report=said.append)
    assert not [line for line in said if line.startswith("few rows")]
