"""A run in its user's own tracker, TensorBoard, Weights & Biases or MLflow, by the callbacks of transformers.

For transformers a run ends with its last step. Here the scores of the package as written come after it, and whatever is
predicted in between is no test: so the callbacks get what is logged from `tracking`, not from the Trainer.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsehub.training.config import TENSORBOARD, WANDB, TrainConfig
from sparsehub.training.job import Report
from sparsehub.training.trainer import NOISE

PREFIXES = {"validation": "eval_", "test": "test_"}  # of which transformers makes the groups `eval/` and `test/`
WRITTEN = "package_"  # scores of the package as written, on the rows that also judged every epoch


@dataclass(frozen=True)
class Tracker:
    """What the callback of one tracker is told about a run."""

    trainer: Any
    callback: Any = None  # transformers' own; None where nobody follows the run

    def log(self, scores: Mapping[str, Any]) -> None:
        """Hand numbers on, at the step that the run has reached."""
        if self.callback is not None and scores:
            trainer = self.trainer
            kept = {name: value for name, value in scores.items() if name not in NOISE}
            self.callback.on_log(trainer.args, trainer.state, trainer.control, logs=kept)

    def log_baselines(self, splits: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Scores of what the run is held against, by split and name."""
        named = {f"{PREFIXES[split]}{name}": row for split, rows in splits.items() for name, row in rows.items()}
        self.log({f"{name}_{key}": value for name, row in named.items() for key, value in row.items()})

    def log_package(self, metrics: Mapping[str, Mapping[str, float]], losses: Mapping[str, float]) -> None:
        """Scores and losses of the package as written; those of the test split under their plain names."""
        for split, loss in losses.items():
            prefix = PREFIXES[split] + (WRITTEN if split == "validation" else "")
            self.log({f"{prefix}{key}": value for key, value in {**metrics[split], "loss": loss}.items()})


@contextmanager
def tracking(config: TrainConfig, trainer: Any, report: Report) -> Iterator[Tracker]:
    """The tracker of a run, told what the Trainer logs; it is closed at the end, also where the run fails."""
    if config.report_to is None:
        yield Tracker(trainer)
        return
    ours = config.report_to != WANDB or _wandb().run is None
    tracker = Tracker(trainer, _callback(config, report))
    tracker.callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=_Settings(config))
    trainer.add_callback(_handing_on(tracker))
    try:
        yield tracker
    finally:
        _close(config.report_to, tracker, ours=ours)


def _callback(config: TrainConfig, report: Report) -> Any:
    from transformers.integrations import get_reporting_integration_callbacks

    (kind,) = get_reporting_integration_callbacks([config.report_to])
    callback = kind()
    if config.report_to == TENSORBOARD:
        out = Path(config.out)
        runs = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(out.with_name(f"{out.name}-{TENSORBOARD}"))
        # One folder a run: two in one folder would be drawn as one curve.
        callback.logging_dir = str(Path(runs) / time.strftime("%Y-%m-%d_%H-%M-%S"))
        report(f"to watch it: tensorboard --logdir {runs}")
    return callback


def _handing_on(tracker: Tracker) -> Any:
    from transformers import TrainerCallback

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
            tracker.log(logs or {})

    return Log()


def _close(name: str, tracker: Tracker, *, ours: bool) -> None:
    """ours: whether the run in the tracker was begun here; one of the caller's own stays open."""
    if name != WANDB:
        trainer = tracker.trainer
        tracker.callback.on_train_end(trainer.args, trainer.state, trainer.control)
    elif ours:
        _wandb().finish()  # transformers' callback leaves it open: the next run of this process would go on in it


def _wandb() -> Any:
    return importlib.import_module(WANDB)


class _Settings:
    """What callbacks take for a model with a configuration: the settings of the run."""

    def __init__(self, config: TrainConfig):
        self.config = self
        self._values = {f.name: _told(getattr(config, f.name)) for f in dataclasses.fields(config)}

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self._values.items() if value is not None}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def _told(value: Any) -> Any:
    """A setting as trackers show it; None for a table in memory: its rows stay here."""
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str | int | float | dict) else None
