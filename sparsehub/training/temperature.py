"""The loss of logits at the temperature that suits them, by which a run tells whether it beats its probe by more than
luck.

Formula: min over T of the mean loss of logits / T, one T for all rows. Source: Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017. Training goes on to be surer long after it has stopped to be more often right, so losses as
they are compare how sure models are; no answer changes with T.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsehub.extras import require
from sparsehub.package.task_spec import MULTI_LABEL, MULTIPLE_CHOICE, TEXT_CLASSIFICATION, TaskSpec
from sparsehub.training.metrics import mean_loss

CALIBRATED_KINDS = (TEXT_CLASSIFICATION, MULTI_LABEL, MULTIPLE_CHOICE)  # whose logits have a temperature
_POWERS = range(-16, 17)  # of two, that are tried first: where the loss is flat, a search alone ends anywhere


def calibrated_loss(task: TaskSpec, logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """The smallest mean loss of the logits at any temperature, in nats a row. task: of one of `CALIBRATED_KINDS`."""
    optimize = require("scipy.optimize", "train")

    def loss(power: float) -> float:
        return mean_loss(task, logits * np.exp2(power), targets)

    near = min(_POWERS, key=loss)
    found = optimize.minimize_scalar(loss, bounds=(near - 1, near + 1), method="bounded")
    return min(float(found.fun), loss(near))
