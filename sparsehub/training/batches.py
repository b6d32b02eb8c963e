"""Rows and targets into the batches that transformers' Trainer feeds its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsehub.package.encoding import Encoded, collate, encode
from sparsehub.package.manifest import REGRESSION, TOKEN_CLASSIFICATION, TaskSpec
from sparsehub.training.data import Row, Split
from sparsehub.training.metrics import IGNORED

Example = tuple[Row, Any]


class Rows(Dataset[Example]):
    """A split as a torch data set. Text stays text: the collator tokenises, so memory holds no token ids."""

    def __init__(self, split: Split):
        self._split = split

    def __len__(self) -> int:
        return len(self._split.rows)

    def __getitem__(self, index: int) -> Example:
        return self._split.rows[index], self._split.targets[index]


@dataclass(frozen=True)
class Collator:
    """Examples into one padded batch with `labels`."""

    task: TaskSpec
    tokenizer: Any

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        rows = encode(self.task, self.tokenizer, [row for row, _ in examples])
        batch = collate(self.tokenizer, rows)
        targets = [target for _, target in examples]
        if self.task.kind == TOKEN_CLASSIFICATION:
            batch["labels"] = _token_labels(rows, targets, batch["input_ids"].shape[1])
        else:
            dtype = torch.float32 if self.task.kind == REGRESSION else torch.long
            batch["labels"] = torch.tensor(targets, dtype=dtype)
        return batch


def _token_labels(rows: Sequence[Encoded], targets: Sequence[Sequence[int]], length: int) -> Tensor:
    """[rows, length]: a word's label at its first token, `IGNORED` elsewhere."""
    labels = torch.full((len(rows), length), IGNORED)
    for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
        places = torch.tensor(row.word_starts, dtype=torch.long)
        labels[i, places] = torch.tensor(target[: len(places)], dtype=torch.long)
    return labels


def by_length(split: Split, task: TaskSpec) -> Split:
    """The same rows, the longest first: evaluation batches then hold rows of similar length and little padding."""
    fields = (*task.text_fields, *task.choice_fields)
    order = sorted(range(len(split.rows)), key=lambda i: -sum(len(split.rows[i][field]) for field in fields))
    return Split(split.source, [split.rows[i] for i in order], [split.targets[i] for i in order])
