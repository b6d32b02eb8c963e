"""`--layers auto`: as few of the last layers as the validation score allows; `train` asks this in place of `fit`.

The fewer layers a task changes, the more of a pass it shares with other tasks of the same text (docs/choose.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sparsehub.backbone.layers import layer_list
from sparsehub.selection.depth import ALL, margin_of
from sparsehub.training.config import TrainConfig
from sparsehub.training.data import load_data
from sparsehub.training.fitting import Fitted, fit
from sparsehub.training.job import Report
from sparsehub.training.metrics import LOWER_IS_BETTER, best_metric

LAST = "last:{}"


def fit_fewest_layers(config: TrainConfig, run: Path, *, report: Report = lambda _: None) -> Fitted:
    """Fit all layers, and then the last one, two, three and so on, each from the backbone; returns the first of these
    whose validation score is no further below that of all layers than the margin of `layers`, else that of all layers.

    Its training record says what was tried. An interrupted run goes on where it was: each fit has a folder of its own.
    Raises what `fit` raises, `UsageError` also where the backbone has no numbered layers.
    """
    margin, trials = margin_of(config.layers), _Trials(config, run, report)
    assert margin is not None  # else `fit` is asked
    # before all layers: a backbone that has none to name is refused before hours of training
    count = layer_list(trials.fitted(LAST.format(1)).task_model.backbone).count
    least = trials.score(ALL) - margin
    shallow = (LAST.format(number) for number in range(1, count))
    chosen = next((layers for layers in shallow if trials.score(layers) >= least), ALL)
    report(f"layers {chosen}: the fewest whose score is within {margin:g} of that of all")
    fitted = trials.fitted(chosen)
    tried = {"layers_tried": trials.found, "layers_margin": margin}
    return dataclasses.replace(fitted, training={**fitted.training, **tried})


class _Trials:
    """The fits of one configuration with other layers each. One at a time is in memory; one that is asked for again
    reads what it left in its folder, and does not train."""

    def __init__(self, config: TrainConfig, run: Path, report: Report):
        self._config, self._run, self._report = config, run, report
        self._data = load_data(config, report)
        self._metric = best_metric(self._data.task, config.metric)
        self._last: tuple[str, Fitted] | None = None
        self.found: dict[str, float] = {}  # validation scores, by layers

    def fitted(self, layers: str) -> Fitted:
        """The fit with these layers."""
        if self._last is not None and self._last[0] == layers:
            return self._last[1]
        self._last = None  # its memory is free before the next one needs as much
        folder = self._run / layers.replace(":", "-")
        folder.mkdir(exist_ok=True)
        config = dataclasses.replace(self._config, layers=layers)
        fitted = fit(config, folder, data=self._data, report=self._report)
        self._last = layers, fitted
        if layers not in self.found:
            self.found[layers] = fitted.metrics["validation"][self._metric]
            self._report(f"layers {layers}: validation {self._metric} {self.found[layers]:.4f}")
        return fitted

    def score(self, layers: str) -> float:
        """Of the validation rows; larger is better."""
        if layers not in self.found:
            self.fitted(layers)
        return -self.found[layers] if self._metric in LOWER_IS_BETTER else self.found[layers]
