"""From a labelled data set to a package: choose the entries, train their values and the head, evaluate, write."""

from sparsehub.training.config import TrainConfig
from sparsehub.training.fit import fit
from sparsehub.training.run import Measured, TrainResult, measure, train

__all__ = ["Measured", "TrainConfig", "TrainResult", "fit", "measure", "train"]
