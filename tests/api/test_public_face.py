"""What `import sparsehub` gives: these names, without torch; each is what its own floor calls by this name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sparsehub
from sparsehub.api.extract import extract
from sparsehub.api.load import load, pipeline
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine
from sparsehub.hub import open_hub
from sparsehub.package import read_package
from sparsehub.training import TrainConfig, train

NAMES = [
    "Engine",
    "TrainConfig",
    "__version__",
    "extract",
    "load",
    "load_backbone",
    "open_hub",
    "pipeline",
    "read_package",
    "train",
]


def test_the_public_names() -> None:
    assert sparsehub.__all__ == NAMES
    assert dir(sparsehub) == NAMES


def test_each_name_is_what_its_floor_has() -> None:
    own = {
        "Engine": Engine,
        "TrainConfig": TrainConfig,
        "extract": extract,
        "load": load,
        "load_backbone": load_backbone,
        "open_hub": open_hub,
        "pipeline": pipeline,
        "read_package": read_package,
        "train": train,
    }
    assert {name: getattr(sparsehub, name) for name in NAMES if name != "__version__"} == own


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'serve'"):
        sparsehub.serve  # noqa: B018  # type: ignore[attr-defined]


def test_the_import_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'typer', 'pydantic', 'fastapi'}"
    code = f"import sys, sparsehub; sparsehub.__version__; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_shows_the_ten_line_use() -> None:
    assert sparsehub.__doc__ is not None
    assert "sparsehub.train(sparsehub.TrainConfig(" in sparsehub.__doc__
    assert 'sparsehub.pipeline("topic", hub=hub)' in sparsehub.__doc__
