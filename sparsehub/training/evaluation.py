"""How good a model is on labelled rows, with no training and no Trainer about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsehub.package.task_spec import TEXT_GENERATION, TaskSpec
from sparsehub.progress import work
from sparsehub.training.batches import Collator, TrainingRows, by_length
from sparsehub.training.data import Split
from sparsehub.training.language_modeling import row_scores, tokenised
from sparsehub.training.metrics import IGNORED, compute

ROWS = 64  # of one batch


@dataclass(frozen=True)
class Outputs:
    """What a model gave for the rows of a split, and what it should have."""

    split: Split  # its rows in the order of the others, by length
    logits: NDArray[Any]  # as `metrics.compute` takes them
    targets: NDArray[Any]


def judge(model: nn.Module, task: TaskSpec, tokenizer: Any, split: Split) -> dict[str, float]:
    """The task's metrics of a transformers model; its weights are as they are now."""
    found = outputs_of(model, task, tokenizer, split)
    return compute(task, found.logits, found.targets)


@torch.no_grad()
def outputs_of(model: nn.Module, task: TaskSpec, tokenizer: Any, split: Split) -> Outputs:
    """The logits of a transformers model for all rows."""
    device = next(model.parameters()).device
    logits, labels = [], []
    generates = task.kind == TEXT_GENERATION
    if generates:
        split = tokenised(split, task, tokenizer)
    ordered = by_length(split, task)
    rows, collate = TrainingRows(ordered), Collator(task, tokenizer)
    model.eval()
    with work("measuring", len(rows), "rows") as advance:
        for start in range(0, len(rows), ROWS):
            stop = min(start + ROWS, len(rows))
            batch = collate([rows[i] for i in range(start, stop)])
            output = model(**{name: tensor.to(device) for name, tensor in batch.items() if name != "labels"})
            found = row_scores(output.logits, batch["labels"].to(device)) if generates else output.logits.float()
            logits.append(found.cpu())
            labels.append(batch["labels"])
            advance(stop - start)
    return Outputs(ordered, _stacked(logits, 0.0).numpy(), _stacked(labels, IGNORED).numpy())


def _stacked(parts: Sequence[Tensor], fill: float) -> Tensor:
    """Batches one after another; where their rows have different lengths, the shorter ones are filled up."""
    if parts[0].ndim == 1 or len({part.shape[1] for part in parts}) == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    rows = [row for part in parts for row in part]
    whole = rows[0].new_full((len(rows), longest, *rows[0].shape[1:]), fill)
    for place, row in zip(whole, rows, strict=True):
        place[: len(row)] = row
    return whole
