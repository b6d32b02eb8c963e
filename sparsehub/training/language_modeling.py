"""Rows of text generation as token ids: whole texts, prompts with completions, conversations; packed where asked.

What the model is to learn has labels, everything else is context: the completion of a prompt, what the assistant says.
Pieces are tokenised one by one, as they are when the model is served: a prompt never shares a token with its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsehub.errors import DataError
from sparsehub.package.chat import Conversation
from sparsehub.package.encoding import text_ids, text_of
from sparsehub.package.task_spec import TaskSpec
from sparsehub.training.data import Split
from sparsehub.training.metrics import IGNORED
from sparsehub.training.tables.table import Row

TOKENS = "tokens"  # the one field of a row that was tokenised


@dataclass(frozen=True)
class Tokens:
    """One or, packed, several texts as token ids.

    labels: what each token is to be predicted as, `IGNORED` for context; starts: where each text begins.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    starts: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def positions(self) -> list[int]:
        """Of each token inside its own text."""
        ends = (*self.starts[1:], len(self))
        return [place for start, end in zip(self.starts, ends, strict=True) for place in range(end - start)]


Segment = tuple[list[int], bool]  # token ids, and whether they are to be learned


def tokenised(split: Split, task: TaskSpec, tokenizer: Any, *, packed: bool = False) -> Split:
    """The split's rows as `Tokens`; raises `DataError`, which names the row."""
    rows: list[Tokens] = []
    for index, row in enumerate(split.rows):
        try:
            rows.extend(_tokens(row, task, tokenizer))
        except DataError as error:
            raise DataError(f"{split.place(index)}: {error}") from error
    if not rows:
        raise DataError(f"{split.source} has nothing to learn from", expected="texts of at least two tokens")
    if packed:
        rows = pack(rows, task.max_length)
    return Split(split.source, [{TOKENS: row} for row in rows], [None] * len(rows))


def _tokens(row: Row, task: TaskSpec, tokenizer: Any) -> Iterator[Tokens]:
    """A whole text that is longer than a row goes on in the next one; of a prompt the beginning is cut off."""
    if not task.label_field and not isinstance(row.get(task.text_fields[0]), list):
        yield from _pieces(_text_ids(row, task, tokenizer), task.max_length)
        return
    segments = _segments(row, task, tokenizer)
    ids = [token for piece, _ in segments for token in piece]
    labels = [token if learned else IGNORED for piece, learned in segments for token in piece]
    labels[0] = IGNORED  # nothing comes before it that could predict it
    over = max(0, len(ids) - task.max_length)
    labels = [IGNORED, *labels[over + 1 :]]
    if all(label == IGNORED for label in labels):
        raise DataError("nothing of the row is to be learned", expected="a completion, or an answer of the assistant")
    yield Tokens(tuple(ids[over:]), tuple(labels))


def _text_ids(row: Row, task: TaskSpec, tokenizer: Any) -> list[int]:
    return [*text_ids(tokenizer, text_of(row, task.text_fields[0]), whole=True), *_end(tokenizer)]


def _pieces(ids: Sequence[int], length: int) -> Iterator[Tokens]:
    for start in range(0, len(ids), length):
        piece = tuple(ids[start : start + length])
        if len(piece) > 1:  # one token alone predicts nothing
            yield Tokens(piece, (IGNORED, *piece[1:]))


def _segments(row: Row, task: TaskSpec, tokenizer: Any) -> list[Segment]:
    if isinstance(row.get(task.text_fields[0]), list):
        return chat_segments(row[task.text_fields[0]], tokenizer)
    completion = text_ids(tokenizer, text_of(row, task.label_field), whole=False)
    prompt = text_ids(tokenizer, text_of(row, task.text_fields[0]), whole=True)
    if not prompt:
        raise DataError("the prompt has no tokens", expected="some text")
    return [(prompt, False), ([*completion, *_end(tokenizer)], True)]


def chat_segments(messages: Sequence[Any], tokenizer: Any) -> list[Segment]:
    """A conversation by the tokenizer's chat template, cut before and after everything that the assistant says."""
    conversation = Conversation(messages, tokenizer)
    segments, done = [], ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = conversation.render(number, answer=True)
        after = conversation.render(number + 1, answer=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise DataError("the chat template does not put messages one after the other", fix="use prompt rows")
        segments += [(conversation.token_ids(before[len(done) :]), False)]
        segments += [(conversation.token_ids(after[len(before) :]), True)]
        done = after
    if not segments:
        raise DataError("the conversation has no answer", expected="a message of the assistant")
    return segments


def _end(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def pack(rows: Sequence[Tokens], length: int) -> list[Tokens]:
    """Texts one after another in rows of at most `length` tokens, in order; each keeps its own positions."""
    packed: list[Tokens] = []
    for row in rows:
        last = packed[-1] if packed else None
        if last is None or len(last) + len(row) > length:
            packed.append(row)
            continue
        starts = (*last.starts, *(len(last) + start for start in row.starts))
        packed[-1] = Tokens(last.ids + row.ids, last.labels + row.labels, starts)
    return packed


def collate_tokens(rows: Sequence[Tokens], tokenizer: Any) -> dict[str, Tensor]:
    """[rows, longest] ids, labels, and an attention mask; of packed rows positions in its place.

    transformers reads from positions that begin anew where one text ends, and lets none see another.
    """
    longest, packed = max(map(len, rows)), any(len(row.starts) > 1 for row in rows)
    batch = {
        "input_ids": _padded([row.ids for row in rows], longest, tokenizer.pad_token_id),
        "labels": _padded([row.labels for row in rows], longest, IGNORED),
    }
    if packed:
        return {**batch, "position_ids": _padded([row.positions for row in rows], longest, 0)}
    return {**batch, "attention_mask": _padded([[1] * len(row) for row in rows], longest, 0)}


def _padded(rows: Sequence[Sequence[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([[*row, *([fill] * (length - len(row)))] for row in rows])


def row_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """[rows, 4] float64, all that the metrics need of logits [rows, length, vocabulary].

    The summed loss of each row, how many tokens it has to learn, how many are the likeliest, and whether all are.
    """
    logits, targets = logits[:, :-1].float(), labels[:, 1:]
    learned = targets != IGNORED
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    right = (logits.argmax(-1) == targets) & learned
    tokens, found = learned.sum(1), right.sum(1)
    return torch.stack([losses.double().sum(1), tokens.double(), found.double(), (tokens == found).double()], dim=1)
