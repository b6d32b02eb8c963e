"""A run that is killed outright goes on when its command is repeated."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from sparsehub.errors import UsageError
from sparsehub.package import read_package
from sparsehub.training import TrainConfig, train
from sparsehub.training.run import MASK_FILE
from tests.support.slow_training import start_slow_training

pytestmark = pytest.mark.slow
Configure = Callable[..., TrainConfig]


@pytest.fixture
def config(make_config: Configure, tmp_path: Path) -> TrainConfig:
    return make_config(out=str(tmp_path / "out"), epochs=4, evaluation_steps=2)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def wait_for(seen: Callable[[], object], process: BaseProcess) -> None:
    deadline = time.monotonic() + 90
    while not seen():
        assert process.is_alive(), process.exitcode
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_killed_while_it_trains_goes_on_at_its_last_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / ".out.run"
    process = start_slow_training(config, 0.4, tmp_path / "said")
    wait_for(lambda: list(run.glob("checkpoint-*")), process)
    kill(process)
    assert not (tmp_path / "out").exists()
    mask = (run / MASK_FILE).read_bytes()

    with pytest.raises(UsageError, match="an interrupted run with other settings"):
        train(dataclasses.replace(config, seed=7))
    assert (run / MASK_FILE).read_bytes() == mask

    said: list[str] = []
    result = train(config, report=said.append)
    assert "going on with an interrupted run" in said
    assert not any("choosing" in line for line in said)
    assert not run.exists()
    whole = train(dataclasses.replace(config, out=str(tmp_path / "whole")))
    assert result.manifest.delta.nnz == whole.manifest.delta.nnz
    assert result.manifest.training["steps"] == whole.manifest.training["steps"] == 12
    read_package(result.folder)


def test_a_run_killed_while_it_chooses_begins_its_choice_anew(config: TrainConfig, tmp_path: Path) -> None:
    lines = tmp_path / "said"
    process = start_slow_training(config, 0.0, lines)
    wait_for(lambda: lines.exists() and "calibration batch" in lines.read_text(), process)
    kill(process)
    run = tmp_path / ".out.run"
    assert {path.name for path in run.iterdir()} == {"run.json"}
    said: list[str] = []
    result = train(config, report=said.append)
    assert any("choosing" in line for line in said)
    assert read_package(result.folder).delta.nnz == result.manifest.delta.nnz > 0
    assert not run.exists()


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(config: TrainConfig, tmp_path: Path) -> None:
    from sparsehub.training.checkpoints import last_checkpoint

    for step, state in {2: '{"global_step": 2}', 4: '{"global_step": 4}', 10: '{"global_st', 12: None}.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert last_checkpoint(tmp_path / "checkpoint-12") is None


def test_restart_drops_what_was_done(config: TrainConfig, tmp_path: Path) -> None:
    process = start_slow_training(dataclasses.replace(config, method="random"), 0.4, tmp_path / "said")
    wait_for(lambda: (tmp_path / ".out.run" / MASK_FILE).exists(), process)
    kill(process)
    said: list[str] = []
    train(dataclasses.replace(config, epochs=1), restart=True, report=said.append)
    assert "going on with an interrupted run" not in said
    assert any("choosing" in line for line in said)
