"""A training that takes its time, in a process of its own, so that there is a middle in which it can be killed.

The processes are forked from one that has imported torch and transformers once.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from sparsehub.training import TrainConfig

_SERVER = multiprocessing.get_context("forkserver")


def start_slow_training(config: TrainConfig, wait: float, said: Path) -> BaseProcess:
    """Train in a process. wait: seconds at each optimiser step, or 0 for a choice of entries that never ends; said: a
    file that gets every line that is reported."""
    _SERVER.set_forkserver_preload(["transformers.trainer", "transformers.models.bert.modeling_bert", __name__])
    process = _SERVER.Process(target=_train, args=(config, wait, said), daemon=True)
    process.start()
    return process


def _train(config: TrainConfig, wait: float, said: Path) -> None:
    from sparsehub.training import train
    from sparsehub.training.sparse_model import SparseModel

    kept = SparseModel.write

    def slow(self: SparseModel) -> None:
        time.sleep(wait)
        kept(self)

    def report(line: str) -> None:
        with said.open("a") as file:
            file.write(f"{line}\n")
        if wait == 0 and "calibration batch" in line:
            time.sleep(60)

    SparseModel.write = slow  # type: ignore[method-assign]
    train(config, report=report)
