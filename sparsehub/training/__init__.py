"""From a labelled data set to a package: choose the entries, train their values and the head, evaluate, write."""

from sparsehub.training.config import TrainConfig
from sparsehub.training.run import TrainResult, fit, train

__all__ = ["TrainConfig", "TrainResult", "fit", "train"]
