"""What else answers many questions about one text, for `benchmarks.engine.trunk`; and the memory of each way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.base_pass_peers import onnx_float, onnx_int8
from benchmarks.harness import Case, Row, interleaved
from benchmarks.models import SHAPES, load_plain, lora_model
from sparsehub.backbone import load_backbone
from sparsehub.engine.target_modules import sample_batch

TASKS, TEXTS, TOKENS = 16, 16, 32
COUNTS = (1, 16, 256, 1000)  # tasks in one process
PLAIN = "plain forward of the texts"


def others(folder: Path, rounds: int) -> list[Row]:
    """What is done elsewhere about many questions and one text, on the smaller encoder."""
    model = load_plain(folder).eval()
    backbone = load_backbone(str(folder))
    inputs = sample_batch(backbone, TEXTS, TOKENS)
    heads = [torch.nn.Linear(SHAPES["6 x 384"][1], 3) for _ in range(TASKS)]
    many = {name: tensor.repeat(TASKS, 1) for name, tensor in inputs.items()}
    lora = lora_model(folder, TASKS)
    names = [f"t{number}" for number in range(TASKS) for _ in range(TEXTS)]

    def answers(states: Tensor) -> list[Tensor]:
        pooled = states.mean(1)
        return [head(pooled) for head in heads]

    calls: dict[str, Callable[[], Any]] = {
        PLAIN: lambda: model(**inputs),
        f"{TASKS} linear heads on one frozen pass, transformers": lambda: answers(model(**inputs).last_hidden_state),
        f"PEFT LoRA r=8, adapter_names, {TASKS} rows a text": lambda: lora(**many, adapter_names=names),
        **onnx_calls(model, folder, inputs, answers),
    }
    timings = interleaved([Case(name, call) for name, call in calls.items()], max(2, rounds // 2), warmup=1)
    setup = {"encoder": "6 x 384", "beside": f"what else answers {TASKS} questions about {TEXTS} texts"}
    plain = timings[PLAIN].median
    return [
        Row(
            name,
            setup,
            {
                "median ms": timing.median,
                "times plain": timing.median / plain,
                "answers a second": "" if name == PLAIN else TASKS * TEXTS / timing.median * 1e3,
            },
        )
        for name, timing in timings.items()
    ]


def resident_memory(folder: Path) -> list[Row]:
    """What a process takes that answers for so many tasks on the smaller encoder; what cannot be tried is left out."""
    from benchmarks.engine.trunk_memory import CASES

    setup = {"encoder": "6 x 384", "memory": "resident MiB of a process, by its number of tasks"}
    found: dict[str, dict[str, Any]] = {name: {} for name in CASES}
    for name, case in CASES.items():
        for tasks in (count for count in COUNTS if count <= case.most):
            command = [sys.executable, "-m", "benchmarks.engine.trunk_memory", name, str(tasks), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and "No module named 'onnxruntime" in done.stderr:
                break
            if done.returncode:
                raise SystemExit(done.stderr)
            found[name][f"{tasks:,}"] = int(done.stdout)
    return [Row(name, setup, measured) for name, measured in found.items() if measured]


def onnx_calls(
    model: Any, folder: Path, inputs: dict[str, Tensor], answers: Callable[[Tensor], list[Tensor]]
) -> dict[str, Callable[[], Any]]:
    """ONNX Runtime on the frozen encoder, float32 and dynamic int8: one pass, and a pass for each task; none where it
    is not installed. answers: those of the heads, from a pass's states."""
    try:
        exact, small = onnx_float(model, folder), onnx_int8(model, folder)
    except ImportError:
        return {}
    batch = {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}
    return {
        f"{TASKS} linear heads on one frozen pass, ONNX Runtime float32": lambda: answers(exact(batch)),
        f"{TASKS} linear heads on one frozen pass, ONNX Runtime int8": lambda: answers(small(batch)),
        f"{TASKS} models, ONNX Runtime int8": lambda: [small(batch) for _ in range(TASKS)],
    }
