"""Calibration ends in time: a slow machine measures the few points that nothing can do without."""

from __future__ import annotations

from typing import Any

import pytest

from sparsehub.backbone import load_backbone
from sparsehub.engine import calibrate
from sparsehub.engine.cost_model import MIXED, SWAP, CostModel, RowGroup
from sparsehub.engine.mixing_check import checked_targets


def test_a_slow_machine_measures_little_and_each_of_it_once(
    tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(tiny_checkpoint("bert"))
    targets = checked_targets(backbone)
    for name in ("CALIBRATION_SECONDS", "FORWARD_SECONDS", "LONG"):
        monkeypatch.setattr(calibrate, name, 0.0)
    passes: list[int] = []
    backbone.module.register_forward_hook(lambda *_: passes.append(1))
    before = backbone.arena.digest()
    points = calibrate.measure_points(backbone, targets, 64)
    assert (len(points.forward), len(points.switch), len(points.sparse)) == (2, 2, 1)
    assert len(passes) == 4, "two forwards, and a mixed one beside its plain one"
    assert backbone.arena.digest() == before
    groups = [RowGroup(32, 100, 2, 16), RowGroup(32, 100, 2, 16)]
    costs = CostModel(points)
    assert 0 < costs.predict(SWAP, groups[:1]) < 100 and 0 < costs.predict(MIXED, groups) < 100


def test_a_batch_is_measured_only_where_it_should_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate.time, "monotonic", lambda: 100.0)
    slow, fast = [(8, 1.0), (32, 4.0)], [(8, 0.001), (32, 0.004)]
    assert list(calibrate._batches_until(110.0, slow)) == [calibrate.BATCHES[0]]  # 256 tokens would take a minute
    assert tuple(calibrate._batches_until(110.0, fast)) == calibrate.BATCHES
