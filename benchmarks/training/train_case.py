"""One case of `benchmarks.training.train` in a process of its own; prints one JSON line.

python -m benchmarks.training.train_case NAME FOLDER THREADS PASSES

PASSES: how many forward and backward passes a batch is cut into; their gradients are summed before the step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# Two calibration batches at least: from the second on, gradients are there while activations are.
DENSITY, BATCH, LENGTH, STEPS, CALIBRATION = 0.005, 16, 64, 1, 2
RULES = ("random", "magnitude", "bitfit", "sam", "sam-released", "sam-hessian", "snip", "fisher", "child-tuning")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word")


def memory(field: str) -> float:
    """VmRSS (resident now) or VmHWM (its peak, of this program alone: unlike ru_maxrss it begins anew at exec), MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


class Peak:
    """Peaks of phases, and of all of them."""

    def __init__(self) -> None:
        self.whole = memory("VmHWM")

    def restart(self) -> float:
        """Begin a phase; returns the memory resident now."""
        self.whole = max(self.whole, memory("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return memory("VmRSS")

    def read(self) -> float:
        peak = memory("VmHWM")
        self.whole = max(self.whole, peak)
        return peak


def save_checkpoint(folder: Path) -> dict[str, Any]:
    """A random 12 x 768 BERT encoder with a tokenizer of one word."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)}).save_pretrained(folder)
    return {}


def batches(count: int, seed: int) -> list[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(len(WORDS), 30_000, (BATCH, LENGTH), generator=generator),
            "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
            "labels": torch.randint(2, (BATCH,), generator=generator),
        }
        for _ in range(count)
    ]


def parts(batch: Mapping[str, Any], passes: int) -> Iterator[dict[str, Any]]:
    """The batch in `passes` pieces of equal size."""
    rows = BATCH // passes
    for start in range(0, BATCH, rows):
        yield {name: tensor[start : start + rows] for name, tensor in batch.items()}


def dense_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_pretrained(folder)


def task_model(folder: Path) -> Any:
    """The same weights and the same head, the way `sparsehub train` loads them."""
    import torch

    from sparsehub.backbone import open_checkpoint
    from sparsehub.package.task_model import load_task_model
    from sparsehub.package.task_spec import TaskSpec

    kind, problem = "text-classification", "single_label_classification"
    task = TaskSpec(kind, ("no", "yes"), problem, ("text",), "label", LENGTH, ("accuracy",))
    checkpoint = open_checkpoint(str(folder))
    torch.manual_seed(1)
    return load_task_model(checkpoint, task)


def choose(method: str, loaded: Any, peak: Peak) -> tuple[Mapping[str, Any], dict[str, float]]:
    """The mask, and what it cost. Calibration cuts its batches into passes by itself."""
    from sparsehub.selection import SelectionRequest, rule_named, select
    from sparsehub.selection.rule import budget_of
    from sparsehub.training.calibration import collectors
    from sparsehub.training.trainable import candidates

    parameters, rule = candidates(loaded), rule_named(method)
    budget = max(budget_of(parameters, DENSITY), budget_of(parameters, rule.defaults.get("density", 0.0)))
    before, start = peak.restart(), time.perf_counter()
    collect = collectors(loaded, rule.options, seed=3)
    rows = batches(CALIBRATION, seed=2)
    statistics = {need: collect[need](rows, list(parameters), lambda: None) for need in rule.needs}
    looked = time.perf_counter() - start
    mask = select(method, SelectionRequest(parameters, budget, seed=3, statistics=statistics, options=rule.options))
    seconds = time.perf_counter() - start
    return mask, {"step": looked / CALIBRATION, "seconds": seconds, "before": before, "peak": peak.read()}


def train_steps(model: Any, optimizer: Any, peak: Peak, passes: int) -> dict[str, Any]:
    """Time and memory of the steps; the first warms up: its time does not count, its memory does."""
    rows = batches(STEPS + 1, seed=4)
    model.train()
    before, times = peak.restart(), []
    for batch in rows:
        start = time.perf_counter()
        for part in parts(batch, passes):
            (model(**part).loss / passes).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    reached = peak.read()
    return {
        "step": statistics.median(times[1:]),
        "before": before,
        "peak": reached,
        "whole": peak.whole,
        "trained": trained,
    }


def full(folder: Path, passes: int) -> dict[str, Any]:
    return _adamw(dense_model(folder), passes)


def full_returning(folder: Path, passes: int) -> dict[str, Any]:
    """With the allocator set as `sparsehub train` sets it."""
    from sparsehub.memory import return_freed_memory

    return_freed_memory()
    return full(folder, passes)


def lora(folder: Path, passes: int) -> dict[str, Any]:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, target_modules="all-linear")
    return _adamw(get_peft_model(dense_model(folder), config), passes)


def shira(folder: Path, passes: int) -> dict[str, Any]:
    from peft import ShiraConfig, TaskType, get_peft_model

    config = ShiraConfig(task_type=TaskType.SEQ_CLS, r=3, target_modules="all-linear", random_seed=5)
    return _adamw(get_peft_model(dense_model(folder), config), passes)


def _adamw(model: Any, passes: int) -> dict[str, Any]:
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return train_steps(model, torch.optim.AdamW(trained, lr=1e-4), Peak(), passes)


def sparse(method: str, folder: Path, passes: int) -> dict[str, Any]:
    from sparsehub.memory import return_freed_memory
    from sparsehub.training.sparse_model import SparseModel

    return_freed_memory()
    loaded, peak = task_model(folder), Peak()
    mask, selection = choose(method, loaded, peak)
    return_freed_memory()  # here and there as `sparsehub train` does
    model = SparseModel(loaded, mask)
    optimizer = model.optimizer(learning_rate=1e-3, head_learning_rate=1e-3, weight_decay=0.0)
    return train_steps(model, optimizer, peak, passes) | {"selection": selection}


def check(folder: Path) -> dict[str, Any]:
    """Three sparse steps against three dense ones whose gradients are masked; no dropout, the same rows."""
    import torch

    from sparsehub.training.sparse_model import SparseModel

    loaded = task_model(folder)
    mask = _every_200th(loaded.backbone.arena.slots)
    ours, reference = SparseModel(loaded, mask), dense_model(folder)
    start = {name: parameter.detach().clone() for name, parameter in reference.bert.named_parameters()}
    for name, parameter in reference.bert.named_parameters():
        parameter.register_hook(_masking(mask.get(name), parameter.shape))
    losses = [
        _three_steps(ours.eval(), ours.optimizer(learning_rate=1e-3, head_learning_rate=1e-3, weight_decay=0.0)),
        _three_steps(reference.eval(), torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.0)),
    ]
    moved = dict(reference.bert.named_parameters())
    expected = torch.cat([(moved[n] - start[n]).detach().flatten()[mask[n]] for n in sorted(mask)])
    difference = float((ours.values.detach() - expected).abs().max())
    loss = max(abs(a - b) for a, b in zip(*losses, strict=True))
    assert difference < 1e-5 and loss < 1e-5, f"a sparse step is no masked dense one: {difference}, {loss}"
    assert float(expected.abs().max()) > 1e-3, "nothing was trained"
    return {"steps": 3, "entries": len(expected), "difference": difference, "loss": loss}


def _every_200th(slots: Mapping[str, Any]) -> dict[str, Any]:
    """Positions by parameter name, 0.5% of them.

    Keys' biases stay out: they move no attention score, so their gradients are rounding noise, which AdamW would blow
    up to whole steps.
    """
    import torch

    chosen = (name for name in slots if not name.endswith("key.bias"))
    return {name: torch.arange(place % 200, slots[name].numel, 200) for place, name in enumerate(chosen)}


def _masking(positions: Any, shape: Any) -> Callable[[Any], Any]:
    import torch

    mask = torch.zeros(shape)
    if positions is not None:
        mask.view(-1)[positions] = 1
    return lambda gradient: gradient * mask


def _three_steps(model: Any, optimizer: Any) -> list[float]:
    losses = []
    for batch in batches(3, seed=6):
        loss = model(**{name: tensor[:4] for name, tensor in batch.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def main(name: str, folder: Path, threads: int, passes: int) -> None:
    started = memory("VmHWM")
    import torch
    from transformers import BertForSequenceClassification  # noqa: F401
    from transformers.utils import logging

    libraries = memory("VmRSS")
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    once = {"checkpoint": save_checkpoint, "check": check}
    cases: dict[str, Callable[[Path, int], dict[str, Any]]] = {
        "full": full,
        "full-returning": full_returning,
        "lora": lora,
        "shira": shira,
        **{method: partial(sparse, method) for method in RULES},
    }
    result = once[name](folder) if name in once else cases[name](folder, passes)
    print(json.dumps(result | {"started": started, "libraries": libraries}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
