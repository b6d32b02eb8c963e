"""What a tracker is told about a run: TensorBoard as it is, Weights & Biases and MLflow by doubles."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsehub.errors import MissingExtraError
from sparsehub.training import TrainConfig, fit, train
from sparsehub.training.run import run_identity

Configure = Callable[..., TrainConfig]
WANDB = {
    "__init__.py": """
from types import SimpleNamespace
run, logged, finished = None, [], []
class Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)
config = Config()
def init(project, name):
    global run
    run = SimpleNamespace(project=project, name=name, summary={}, id="1", _label=lambda code: None)
def log(values):
    logged.append(values)
def finish():
    global run
    finished.append(run.name)
    run = None
""",
    "sdk/__init__.py": "",
    "sdk/lib/__init__.py": "",
    "sdk/lib/config_util.py": "class ConfigError(Exception): pass\n",
}
MLFLOW = {
    "__init__.py": """
from types import SimpleNamespace
from mlflow import utils
__version__ = "3.1.0"
run, logged, finished, params = None, [], [], {}
def is_tracking_uri_set():
    return True
def get_tracking_uri():
    return "here"
def active_run():
    return run
def start_run(run_name, nested):
    global run
    run = SimpleNamespace(name=run_name, info=SimpleNamespace(run_id="1"))
def log_params(values, synchronous):
    params.update(values)
def log_metrics(metrics, step, synchronous):
    logged.append({**metrics, "step": step})
def end_run():
    global run
    finished.append(run.name)
    run = None
""",
    "utils/__init__.py": "from mlflow.utils import validation\n",
    "utils/validation.py": "MAX_PARAM_VAL_LENGTH = 6000\nMAX_PARAMS_TAGS_PER_BATCH = 100\n",
}


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """double(name, files): a package of that name, which notes what transformers' callback tells it."""
    made: list[str] = []

    def make(name: str, files: dict[str, str]) -> Any:
        for file, text in files.items():
            path = tmp_path / "packages" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path / "packages")
        made.append(name)
        return importlib.import_module(name)

    yield make
    for module in [module for module in sys.modules if module.split(".")[0] in made]:
        del sys.modules[module]


def probed(make_config: Configure, tmp_path: Path, **changes: Any) -> TrainConfig:
    """Six steps in two epochs from a probe, with rows to test on."""
    config = make_config(out=str(tmp_path / "out"), head="linear", **changes)
    return dataclasses.replace(config, test=config.train)


def test_tensorboard_has_losses_every_epochs_scores_the_probe_and_the_test(
    make_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    said: list[str] = []
    manifest = train(probed(make_config, tmp_path, report_to="tensorboard"), report=said.append).manifest
    assert f"to watch it: tensorboard --logdir {tmp_path / 'out-tensorboard'}" in said
    (run,) = (tmp_path / "out-tensorboard").iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert [step for step, _ in found["train/loss"]] == [step for step, _ in found["train/learning_rate"]] == [3, 6]
    assert [step for step, _ in found["eval/accuracy"]] == [3, 6]
    probe = manifest.training["baselines"]
    for group, split in (("eval", "validation"), ("test", "test")):
        score = pytest.approx(probe[split]["probe"]["accuracy"])
        assert found[f"{group}/probe_accuracy"] == [(0, score), (6, score)]
        assert found[f"{group}/majority_accuracy"] == [(6, pytest.approx(probe[split]["majority"]["accuracy"]))]
    assert found["test/accuracy"] == [(6, pytest.approx(manifest.metrics["test"]["accuracy"]))]
    assert found["eval/package_accuracy"] == [(6, pytest.approx(manifest.metrics["validation"]["accuracy"]))]
    assert not [tag for tag in found if "choice" in tag]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_other_trackers_are_told_the_same_and_are_closed(
    make_config: Configure, tmp_path: Path, double: Callable[..., Any], name: str
) -> None:
    tracker = double(name, {"wandb": WANDB, "mlflow": MLFLOW}[name])
    fitted = fit(probed(make_config, tmp_path, report_to=name, logging_steps=2), tmp_path / "run")
    test, step = ("test/", "train/global_step") if name == "wandb" else ("test_", "step")
    scores = [(row[step], row[f"{test}accuracy"]) for row in tracker.logged if f"{test}accuracy" in row]
    assert scores == [(6, fitted.metrics["test"]["accuracy"])]
    loss = "train/loss" if name == "wandb" else "loss"
    assert [row[step] for row in tracker.logged if loss in row] == [2, 4, 6]
    assert tracker.finished == ["tiny-0.1.0"] and tracker.run is None
    settings = tracker.config if name == "wandb" else tracker.params
    assert (settings["method"], settings["density"], settings["learning_rate"]) == ("sam", 0.02, 1e-2)


def test_a_run_of_the_callers_own_stays_open(
    make_config: Configure, tmp_path: Path, double: Callable[..., Any]
) -> None:
    wandb = double("wandb", WANDB)
    wandb.init("theirs", "theirs")
    fit(probed(make_config, tmp_path, report_to="wandb", epochs=1), tmp_path / "run")
    assert wandb.run.name == "theirs" and wandb.finished == []


def test_a_run_that_fails_is_closed(
    make_config: Configure, tmp_path: Path, double: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = double("wandb", WANDB)

    def broken(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("sparsehub.training.fitting._judge_stored", broken)
    with pytest.raises(MemoryError):
        fit(probed(make_config, tmp_path, report_to="wandb", epochs=1), tmp_path / "run")
    assert wandb.finished == ["tiny-0.1.0"]


def test_a_tracker_that_is_not_installed_is_said_at_once(
    make_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="report_to: wandb is not installed; to do: pip install wandb"):
        make_config(report_to="wandb")


def test_rows_in_memory_are_not_told_and_a_tracker_changes_no_package(
    make_config: Configure, tmp_path: Path, double: Callable[..., Any]
) -> None:
    wandb = double("wandb", WANDB)
    rows = [{"text": "a secret", "label": "good"}, {"text": "another secret", "label": "bad"}] * 4
    config = make_config(train=rows, validation=None, epochs=1, head="linear")
    followed = dataclasses.replace(config, report_to="wandb")
    fit(followed, tmp_path / "run")
    assert "secret" not in str([wandb.logged, dict(wandb.config)])
    assert run_identity(followed) == run_identity(config)
