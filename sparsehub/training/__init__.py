"""From a labelled data set to a package: choose the entries, train their values and the head, evaluate, write."""

from typing import TYPE_CHECKING

from sparsehub.lazy import lazy_names

if TYPE_CHECKING:
    from sparsehub.training.config import TrainConfig
    from sparsehub.training.fitting import fit
    from sparsehub.training.run import Measured, TrainResult, measure, train

__all__ = ["Measured", "TrainConfig", "TrainResult", "fit", "measure", "train"]

_HOMES = {
    "TrainConfig": "config",
    "fit": "fitting",  # this and the following import torch
    **dict.fromkeys(["Measured", "TrainResult", "measure", "train"], "run"),
}
__getattr__ = lazy_names(__name__, _HOMES)
