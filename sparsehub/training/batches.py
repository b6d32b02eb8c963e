"""Rows and targets into the batches that transformers' Trainer feeds its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsehub.package.encoding import Encoded, collate, encode
from sparsehub.package.task_spec import (
    EMBEDDING,
    MULTI_LABEL,
    REGRESSION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    TaskSpec,
)
from sparsehub.training.data import Split
from sparsehub.training.language_modeling import TOKENS, collate_tokens
from sparsehub.training.metrics import IGNORED
from sparsehub.training.tables.table import Row

Example = tuple[Row, Any]
TableRow = tuple["TokenTable", int]


class TrainingRows(Dataset[Example]):
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

    def __call__(self, examples: Sequence[Example | TableRow]) -> dict[str, Tensor]:
        first = examples[0][0]
        if isinstance(first, TokenTable):
            return first.batch([row for _, row in examples])
        return self.batch(cast("Sequence[Example]", examples))

    def batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Rows and targets as they were read; of a text generation as they were tokenised."""
        if self.task.kind == TEXT_GENERATION:
            return collate_tokens([row[TOKENS] for row, _ in examples], self.tokenizer)
        rows = encode(self.task, self.tokenizer, [row for row, _ in examples])
        batch = collate(self.tokenizer, rows)
        targets = [target for _, target in examples]
        if self.task.kind == TOKEN_CLASSIFICATION:
            batch["labels"] = _token_labels(rows, targets, batch["input_ids"].shape[1])
        else:
            scored = self.task.kind == EMBEDDING and bool(self.task.label_field)
            dtype = torch.float32 if scored or self.task.kind in (REGRESSION, MULTI_LABEL) else torch.long
            batch["labels"] = torch.tensor(targets, dtype=dtype)
        return batch


class TokenTable(Dataset["TableRow"]):
    """A split as token ids, made once and kept on a device: short texts on a GPU then wait for nothing.

    A batch is cut to its longest row, so it equals the one that `Collator` makes of the same rows.
    """

    def __init__(self, split: Split, collator: Collator, device: torch.device):
        whole = collator.batch(list(zip(split.rows, split.targets, strict=True)))
        self._columns = {name: tensor.to(device) for name, tensor in whole.items()}
        self._labels_whole = collator.task.kind in (MULTI_LABEL, EMBEDDING)
        self._left = collator.tokenizer.padding_side == "left" and collator.task.kind != TEXT_GENERATION
        seen = whole.get("attention_mask", torch.ones_like(whole["input_ids"]))  # packed rows are full, or nearly
        self._length = seen.shape[-1]
        self._lengths = seen.view(len(seen), -1, self._length).sum(-1).amax(-1).tolist()

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> TableRow:
        return self, index

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The rows with these numbers, padded to the longest of them."""
        longest = max(self._lengths[row] for row in rows)
        places = slice(self._length - longest, None) if self._left else slice(longest)
        device = next(iter(self._columns.values())).device
        index = torch.tensor(rows, device=device)
        return {n: self._cut(n, tensor.index_select(0, index), places) for n, tensor in self._columns.items()}

    def _cut(self, name: str, column: Tensor, places: slice) -> Tensor:
        """Labels of a whole row are never cut, not even where a row has as many as it has tokens."""
        by_token = column.ndim > 1 and column.shape[-1] == self._length
        return column[..., places] if by_token and not (name == "labels" and self._labels_whole) else column


def _token_labels(rows: Sequence[Encoded], targets: Sequence[Sequence[int]], length: int) -> Tensor:
    """[rows, length]: a word's label at its first token, `IGNORED` elsewhere."""
    labels = torch.full((len(rows), length), IGNORED)
    for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
        places = torch.tensor(row.word_starts, dtype=torch.long)
        labels[i, places] = torch.tensor(target[: len(places)], dtype=torch.long)
    return labels


def by_length(split: Split, task: TaskSpec) -> Split:
    """The same rows, the longest first: evaluation batches then hold rows of similar length and little padding."""
    fields = (TOKENS,) if task.kind == TEXT_GENERATION else (*task.text_fields, *task.choice_fields)
    order = sorted(range(len(split.rows)), key=lambda i: -sum(len(split.rows[i][field]) for field in fields))
    return Split(split.source, [split.rows[i] for i in order], [split.targets[i] for i in order])
