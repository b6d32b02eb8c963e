"""The examples run, and show what they say they show."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def discontinuity(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = importlib.util.spec_from_file_location("discontinuity", EXAMPLES / "projection_discontinuity.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "discontinuity", module)  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


def test_a_projection_goes_farther_than_the_weights_and_a_fixed_mask_never(
    discontinuity: Any, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    steps = list(discontinuity.measured_steps(str(tiny_checkpoint("bert")), steps=8, density=0.01, learning_rate=1e-3))
    assert len(steps) == 7
    assert all(step.fixed <= step.weights for step in steps)
    assert all(0 <= step.swapped <= 1 for step in steps) and any(step.swapped > 0 for step in steps)
    discontinuity.draw(steps, 0.01, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_projection_of_two_equal_changes_jumps(discontinuity: Any) -> None:
    import torch

    near = torch.tensor([1.0, 0.999]), torch.tensor([0.999, 1.0])
    one, other = (discontinuity.project(point, 1)[0] for point in near)
    assert float((near[0] - near[1]).norm()) < 0.01 and float((one - other).norm()) > 1.4
