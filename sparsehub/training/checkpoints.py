"""What a run has left in its folder, which an interrupted one goes on from: the Trainer's checkpoints, and where
training ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsehub.files import write_file
from sparsehub.training.job import Report

STATE_FILE = "trainer_state.json"
ENDED_FILE = "ended.json"


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the Trainer writes its state file last."""
    found = [folder for folder in run.glob("checkpoint-*") if _is_whole(folder / STATE_FILE)]
    return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def resume_from(run: Path, report: Report) -> str | None:
    """The newest checkpoint in the Trainer's own terms: its folder, or None to begin anew."""
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        return None
    report(f"resuming at step {checkpoint.name.rpartition('-')[2]}")
    return str(checkpoint)


def _is_whole(state: Path) -> bool:
    try:
        return isinstance(json.loads(state.read_text())["global_step"], int)
    except (OSError, ValueError, KeyError):
        return False


def note_end(trainer: Any, run: Path) -> None:
    """Write down that training stopped early and where: whoever goes on from there must not train further."""
    state = trainer.state
    if state.is_world_process_zero and state.global_step < state.max_steps:
        # nine digits, never more than there was: steps are rounded up from epochs
        write_file(run / ENDED_FILE, json.dumps({"epochs": int(state.epoch * 1e9) / 1e9}).encode())


def ended_at(run: Path) -> float | None:
    """The epoch in which the run's training stopped early; None where it did not."""
    file = run / ENDED_FILE
    return float(json.loads(file.read_text())["epochs"]) if file.is_file() else None
