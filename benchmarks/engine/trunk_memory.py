"""How much memory one process takes that answers for so many tasks; `benchmarks.engine.trunk` runs it for each case.

python -m benchmarks.engine.trunk_memory CASE TASKS FOLDER
"""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.base_pass_peers import onnx_int8
from benchmarks.engine.trunk import head_of, last_layers, spec_of, upper_delta
from benchmarks.models import load_plain, lora_model
from benchmarks.packages import manifest_of
from benchmarks.training.train_case import memory
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, Task
from sparsehub.package import Package
from sparsehub.package.task_spec import MEAN


@dataclass(frozen=True)
class MemoryCase:
    """Something that answers for many tasks. build: of a number of tasks and the encoder's folder, what is to be held;
    most: tasks that it is tried with."""

    build: Callable[[int, Path], Any]
    most: int = 1000


def main() -> None:
    case, tasks, folder = sys.argv[1:]
    warnings.filterwarnings("ignore")
    with torch.inference_mode():
        held = CASES[case].build(int(tasks), Path(folder))
    assert held is not None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed on the way is not the case's
    print(round(memory("VmRSS")))


def ours(layers: int) -> Callable[[int, Path], Any]:
    """An engine with tasks that change the last layers; their packages are read, and not kept."""

    def build(tasks: int, folder: Path) -> Any:
        backbone = load_backbone(str(folder))
        engine = Engine(backbone)
        delta = upper_delta(backbone, last_layers(backbone, layers), 0)
        for number in range(tasks):
            manifest = replace(manifest_of(backbone, delta, number), task=spec_of(MEAN))
            package = Package(manifest, delta, head_of("6 x 384", number), f"sha256:{number:064x}")
            engine.register(Task(manifest.name, manifest.version, package.digest, lambda package=package: package))
            engine.load(manifest.name, pin=True)
        pending = engine.classify("task0", ["who wrote the book"])
        while engine.waiting:
            engine.step(0.1)
        assert pending.results(0)
        return engine

    return build


def frozen(tasks: int, folder: Path) -> Any:
    """Linear heads on one encoder of transformers."""
    model = load_plain(folder).eval()
    heads = [torch.nn.Linear(model.config.hidden_size, 3) for _ in range(tasks)]
    states = model(input_ids=torch.ones(1, 8, dtype=torch.long)).last_hidden_state.mean(1)
    return model, heads, [head(states) for head in heads]


def adapters(tasks: int, folder: Path) -> Any:
    """PEFT's LoRA adapters of one encoder."""
    return lora_model(folder, tasks)


def models(tasks: int, folder: Path) -> Any:
    """A session of ONNX Runtime for each task, on int8 weights of its own."""
    import onnxruntime

    onnx_int8(load_plain(folder).eval(), folder)  # which writes the file
    return [onnxruntime.InferenceSession(folder / "int8.onnx") for _ in range(tasks)]


CASES: Mapping[str, MemoryCase] = {
    "sparsehub, heads alone": MemoryCase(ours(0)),
    "sparsehub, the last 1 of 6 layers": MemoryCase(ours(1)),
    "linear heads on one encoder, transformers": MemoryCase(frozen),
    "PEFT LoRA r=8": MemoryCase(adapters, most=256),
    "a model each, ONNX Runtime int8": MemoryCase(models, most=16),
}


if __name__ == "__main__":
    main()
