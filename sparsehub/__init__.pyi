"""The types of the names that `sparsehub/__init__.py` imports when they are first used."""

from sparsehub.api.extract import extract as extract
from sparsehub.api.load import load as load
from sparsehub.api.load import pipeline as pipeline
from sparsehub.backbone import load_backbone as load_backbone
from sparsehub.engine import Engine as Engine
from sparsehub.hub import open_hub as open_hub
from sparsehub.package import read_package as read_package
from sparsehub.training import train as train
from sparsehub.training.config import TrainConfig as TrainConfig

__version__: str
__all__: list[str]
