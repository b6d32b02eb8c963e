"""How good a model is on labelled rows, with no training and no Trainer about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.package.task_spec import TEXT_GENERATION, TaskSpec
from sparsehub.training.batches import Collator, TrainingRows, by_length
from sparsehub.training.data import Split
from sparsehub.training.language_modeling import row_scores, tokenised
from sparsehub.training.metrics import IGNORED, compute

ROWS = 64  # of one batch


@torch.no_grad()
def judge(model: nn.Module, task: TaskSpec, tokenizer: Any, split: Split) -> dict[str, float]:
    """The task's metrics of a transformers model; its weights are as they are now."""
    device = next(model.parameters()).device
    logits, labels = [], []
    generates = task.kind == TEXT_GENERATION
    if generates:
        split = tokenised(split, task, tokenizer)
    ordered, collate = TrainingRows(by_length(split, task)), Collator(task, tokenizer)
    model.eval()
    for start in range(0, len(ordered), ROWS):
        batch = collate([ordered[i] for i in range(start, min(start + ROWS, len(ordered)))])
        output = model(**{name: tensor.to(device) for name, tensor in batch.items() if name != "labels"})
        found = row_scores(output.logits, batch["labels"].to(device)) if generates else output.logits.float()
        logits.append(found.cpu())
        labels.append(batch["labels"])
    return compute(task, _stacked(logits, 0.0).numpy(), _stacked(labels, IGNORED).numpy())


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
