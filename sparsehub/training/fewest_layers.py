"""`--layers auto`: as few of the last layers as the validation score allows; `train` asks this in place of `fit`.

The fewer layers a task changes, the more of a pass it shares with other tasks of the same text (docs/choose.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sparsehub.backbone.layers import layer_list
from sparsehub.errors import UsageError
from sparsehub.package.task_model import TaskModel
from sparsehub.selection.depth import ALL, AUTO, MARGIN, margin_of
from sparsehub.training.config import TrainConfig
from sparsehub.training.data import TaskData, load_data
from sparsehub.training.fitting import Fitted, fit, silent
from sparsehub.training.job import Report
from sparsehub.training.metrics import LOWER_IS_BETTER, best_metric
from sparsehub.training.probe import SMALL
from sparsehub.training.processes import speaks
from sparsehub.training.trainer import SCORE_STEP

LAST = "last:{}"


def fit_fewest_layers(config: TrainConfig, run: Path, *, report: Report = lambda _: None) -> Fitted:
    """Fit the last layer and all layers, then the last two, three and so on, each from the backbone; returns the first
    of these whose validation score is no further behind that of all layers than the margin of `layers`, else all's.

    Its training record says what was tried. An interrupted run goes on where it was: each fit has a folder of its own.
    Raises what `fit` raises, `UsageError` also where the backbone has no numbered layers, and where there are too few
    validation rows for the usual margin.
    """
    trials = _Trials(config, run, report if speaks() else silent)
    # before all layers: a backbone that has none to name is refused before hours of training
    first = trials.fitted(LAST.format(1))
    count, whole = layer_list(first.task_model.backbone).count, trials.fitted(ALL)
    shallow = (first if number == 1 else trials.fitted(LAST.format(number)) for number in range(1, count))
    fitted = next((one for one in shallow if trials.is_enough(one, whole)), whole)
    return dataclasses.replace(fitted, training={**fitted.training, **trials.record(fitted)})


class _Trials:
    """The fits of one configuration with other layers each. They share one module, that of the first: a package is made
    of the change, and nothing but its identity is read from the module then."""

    def __init__(self, config: TrainConfig, run: Path, report: Report):
        margin = margin_of(config.layers)
        assert margin is not None  # else `fit` is asked
        self._config, self._run, self._report, self._margin = config, run, report, margin
        self._data = load_data(config, report)
        _check_enough_rows(self._data, config.layers)
        self._metric = best_metric(self._data.task, config.metric)
        self._model: TaskModel | None = None
        self._found: dict[str, float] = {}  # validation scores, by layers

    def fitted(self, layers: str) -> Fitted:
        """The fit with these layers."""
        folder = self._run / layers.replace(":", "-")
        folder.mkdir(exist_ok=True)
        config = dataclasses.replace(self._config, layers=layers)
        fitted = fit(config, folder, data=self._data, report=self._report)
        self._model = self._model or fitted.task_model
        self._found[layers] = self._score(fitted)
        self._report(f"layers {layers}: validation {self._metric} {self._found[layers]:.4f}")
        return dataclasses.replace(fitted, task_model=self._model)

    def is_enough(self, fitted: Fitted, whole: Fitted) -> bool:
        """Whether a fit is as good as that of all layers, but for the margin: of scores an amount, of what is better
        when it is lower a share."""
        score, best = self._score(fitted), self._score(whole)
        if self._metric in LOWER_IS_BETTER:
            return score <= best * (1 + self._margin) + SCORE_STEP / 2
        return score >= best - self._margin - SCORE_STEP / 2

    def record(self, chosen: Fitted) -> dict[str, Any]:
        """What was tried, for the training record of the one that was chosen."""
        layers = chosen.training.get("layers") or ALL
        self._report(f"layers {layers}: the fewest whose score is within {self._margin:g} of that of all")
        return {"layers_tried": self._found, "layers_margin": self._margin}

    def _score(self, fitted: Fitted) -> float:
        return fitted.metrics["validation"][self._metric]


def _check_enough_rows(data: TaskData, layers: str) -> None:
    """Raises `UsageError` where nobody has named a margin and a score of so few rows says nothing of the usual one."""
    rows = len(data.validation.rows) if data.validation else 0
    if layers == AUTO and rows < SMALL:
        raise UsageError(
            f"{rows} validation rows cannot tell scores apart that are {MARGIN:g} from each other",
            found=f"layers {layers}: a row is {1 / max(rows, 1):.3f}",
            expected=f"at least {SMALL} rows",
            fix=f"name a margin, such as {AUTO}:0.05, or the layers, such as {LAST.format(2)}",
        )
