"""Two processes over gloo, started as users start them: the same selection, and the delta of one process."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsehub.delta import Delta, read_delta
from sparsehub.package import read_package
from sparsehub.tensorfile import load_tensors
from sparsehub.training import TrainConfig, fit
from sparsehub.training.processes import Processes, from_the_first, join_processes

Configure = Callable[..., TrainConfig]
pytestmark = pytest.mark.slow
SCRIPT = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from sparsehub.delta import delta_bytes
from sparsehub.tensorfile import load_tensors
from sparsehub.training import TrainConfig, fit
import gc, os
gc.freeze()  # a Trainer collects garbage at every start: not in what was imported
rank = os.environ["RANK"]
tuples = ("text", "choices", "labels", "include", "exclude")
for number, table in enumerate(json.loads(sys.argv[1])):
    config = TrainConfig(**{**table, **{name: tuple(table[name]) for name in tuples}})
    folder = Path(sys.argv[2]) / str(number)
    fitted = fit(config, folder / "run", report=print)
    (folder / f"delta-{rank}").write_bytes(delta_bytes(fitted.delta))
    save_file({n: t.contiguous() for n, t in fitted.head.items()}, folder / f"head-{rank}")
    (folder / f"metrics-{rank}").write_text(json.dumps([fitted.metrics, fitted.training["batch_size"]]))
"""


def launch(command: list[str], cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def assert_close(found: Delta, expected: Delta) -> None:
    """As vectors: single steps of Adam may be anything where a gradient is only rounding noise."""
    assert found.parameters.keys() == expected.parameters.keys()
    for name, part in expected.parameters.items():
        assert torch.equal(found.parameters[name].indices, part.indices)
    a, b = (torch.cat([part.values for _, part in sorted(d.parameters.items())]) for d in (found, expected))
    assert float((a - b).norm() / b.norm()) < 0.01


CASES: list[dict[str, Any]] = [
    {"method": "sam"},
    {"method": "fisher", "accumulation": 3, "head_steps": 2},
    {"method": "full", "density": 1.0},
    {"method": "lora", "density": 1.0},
]


def test_two_processes_choose_alike_and_learn_what_one_learns(
    make_config: Configure, still: str, tmp_path: Path
) -> None:
    """The same global batch: 2 rows in each of two processes, 4 in one.

    The head stands still: many of its gradients cancel here but for rounding, whose sign is what Adam steps along. That
    DistributedDataParallel averages what it sees, as it would the head, the LoRA shows.
    """
    rates = {"learning_rate": 1e-3, "head_learning_rate": 0.0}
    base = make_config(backbone=still, epochs=2, batch_size=2, warmup=0.0, clip=0.5, **rates)
    configs = [dataclasses.replace(base, **case) for case in CASES]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tables = json.dumps([dataclasses.asdict(config) for config in configs])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    shown = launch([*torchrun, "--standalone", str(script), tables, str(tmp_path)], tmp_path)
    assert shown.count("choosing 487 entries by sam") == 1  # one process speaks
    for number, config in enumerate(configs):
        folder = tmp_path / str(number)
        for kind in ("delta", "head", "metrics"):
            assert (folder / f"{kind}-0").read_bytes() == (folder / f"{kind}-1").read_bytes(), (config.method, kind)
        batch = config.batch_size * 2
        alone = fit(dataclasses.replace(config, batch_size=batch), tmp_path / f"alone-{number}")
        assert alone.delta is not None
        mask = folder / "run" / "selection.safetensors"
        if mask.is_file():
            one, other = load_tensors(mask), load_tensors(tmp_path / f"alone-{number}" / "selection.safetensors")
            chosen = {n: t.tolist() for n, t in one.items() if not n.startswith("head.")}
            assert chosen == {n: t.tolist() for n, t in other.items() if not n.startswith("head.")}
        metrics, rows = json.loads((folder / "metrics-0").read_text())
        assert rows == batch * config.accumulation and set(metrics) == set(alone.metrics)
        shapes = {name: part.shape for name, part in alone.delta.parameters.items()}
        assert_close(read_delta(folder / "delta-0", shapes, "add", "float32"), alone.delta)


LAUNCHED = """
import sys
from accelerate import debug_launcher
from sparsehub.cli import main
debug_launcher(main, (sys.argv[1:],), num_processes=2)
"""


@pytest.mark.parametrize("layers", ["all", "auto:1"])
def test_the_command_under_accelerate_writes_one_package_and_speaks_once(
    make_config: Configure, still: str, tmp_path: Path, layers: str
) -> None:
    config = make_config()
    command = ["train", "--backbone", still, "--kind", config.kind, "--name", "two", "--json", "--device", "cpu"]
    command += ["--train", config.train, "--validation", config.train, "--text", "text", "--batch-size", "2"]
    shown = launch(
        [sys.executable, "-c", LAUNCHED, *command, "--density", "0.01", "--layers", layers, "--out", "out"], tmp_path
    )
    package = read_package(tmp_path / "out")
    assert package.manifest.training["batch_size"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert sum(line.startswith("{") for line in shown.splitlines()) == 1
    assert shown.count("layers last:1: the fewest") == (layers != "all") and shown.count(": 8 rows") <= 2


def test_alone_there_is_one_process() -> None:
    assert join_processes("cpu") == Processes(0, 1) and Processes().first
    tensors = {"a": torch.ones(2)}
    assert from_the_first(Processes(), tensors) == tensors
