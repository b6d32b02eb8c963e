from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsehub.backbone import open_checkpoint
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import BackboneError, DataError
from sparsehub.package.encoding import Encoded, collate, encode, special_tokens, text_of, words_of
from sparsehub.package.task_spec import HEADED_KINDS, TaskSpec

FAMILIES = ["bert", "roberta", "distilbert", "gpt2"]
MakeTask = Callable[..., TaskSpec]
TaskRows = dict[str, list[dict[str, Any]]]
Tokenizer = Callable[[str], Any]


@pytest.fixture(scope="module")
def tokenizer_of(tiny_checkpoint: Callable[[str], Path]) -> Tokenizer:
    """tokenizer_of(family): a fresh tokenizer, to be changed."""
    return lambda family: load_tokenizer(open_checkpoint(str(tiny_checkpoint(family))))


@pytest.fixture
def bert(tokenizer_of: Tokenizer) -> Any:
    return tokenizer_of("bert")


@pytest.mark.parametrize("kind", HEADED_KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_special_token_that_a_text_spells_is_text(
    tokenizer_of: Tokenizer, make_task: MakeTask, task_rows: TaskRows, family: str, kind: str
) -> None:
    """In every field of every kind: no more special tokens than around the same row without them."""
    tokenizer, task = tokenizer_of(family), make_task(kind)
    row = task_rows[kind][0]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    spelt = " ".join(special_tokens(tokenizer))
    loud = {name: f"{text} {spelt}" if isinstance(text, str) else [*text, *spelt.split()] for name, text in row.items()}
    plain_row, loud_row = encode(task, tokenizer, [row, loud])
    for plain, found in zip(plain_row.sequences, loud_row.sequences, strict=True):
        assert len(found["input_ids"]) > len(plain["input_ids"])
        count = [sum(token in special for token in sequence["input_ids"]) for sequence in (plain, found)]
        assert count[0] == count[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_has_the_tokens_that_transformers_gives_it(
    tokenizer_of: Tokenizer, make_task: MakeTask, family: str
) -> None:
    tokenizer = tokenizer_of(family)
    texts = ["a good film", "bad"]
    found = encode(make_task("text-classification"), tokenizer, [{"text": text} for text in texts])
    assert [dict(row.sequences[0]) for row in found] == [dict(tokenizer(text)) for text in texts]
    assert all(row.word_starts == () for row in found)


def test_two_fields_make_a_pair(bert: Any, make_task: MakeTask) -> None:
    task = make_task("text-classification", text_fields=("one", "two"))
    (row,) = encode(task, bert, [{"one": "a film", "two": "the dog"}])
    assert dict(row.sequences[0]) == dict(bert("a film", "the dog"))
    assert set(row.sequences[0]["token_type_ids"]) == {0, 1}


def test_the_context_meets_every_choice(bert: Any, make_task: MakeTask) -> None:
    task = make_task("multiple-choice", text_fields=("one", "two"))
    (row,) = encode(task, bert, [{"one": "a film", "two": "why", "first": "bad", "second": "good fun"}])
    assert [dict(sequence) for sequence in row.sequences] == [
        dict(bert("a film why", choice)) for choice in ("bad", "good fun")
    ]
    assert row.length == max(len(sequence["input_ids"]) for sequence in row.sequences)
    assert row.tokens == sum(len(sequence["input_ids"]) for sequence in row.sequences)


@pytest.mark.parametrize("kind", HEADED_KINDS)
def test_rows_are_cut_where_that_is_wanted(bert: Any, make_task: MakeTask, task_rows: TaskRows, kind: str) -> None:
    task = make_task(kind, max_length=6)
    cut, whole = encode(task, bert, task_rows[kind]), encode(task, bert, task_rows[kind], truncate=False)
    assert max(row.length for row in cut) == 6 < max(row.length for row in whole)
    for row in cut:
        assert all(sequence["input_ids"][-1] == bert.sep_token_id for sequence in row.sequences)


def test_no_rows_are_no_rows(bert: Any, make_task: MakeTask) -> None:
    assert all(encode(make_task(kind), bert, []) == [] for kind in HEADED_KINDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_begins_at_its_first_token(tokenizer_of: Tokenizer, make_task: MakeTask, family: str) -> None:
    tokenizer = tokenizer_of(family)
    words = ["merkel", "jumps", "a", "zzzz"]
    (row,) = encode(make_task("token-classification"), tokenizer, [{"words": words}])
    ids = row.sequences[0]["input_ids"]
    ends = [*row.word_starts[1:], len(ids) - (0 if family == "gpt2" else 1)]
    spelt = [tokenizer.decode(ids[start:end]).strip() for start, end in zip(row.word_starts, ends, strict=True)]
    assert spelt == words


@pytest.mark.parametrize("family", FAMILIES)
def test_words_have_the_tokens_that_they_have_inside_a_sentence(
    tokenizer_of: Tokenizer, make_task: MakeTask, family: str
) -> None:
    """Byte-level vocabularies put the space in front of a word into its first token."""
    tokenizer = tokenizer_of(family)
    (row,) = encode(make_task("token-classification"), tokenizer, [{"words": ["the", "king", "of", "spain"]}])
    ids, sentence = row.sequences[0]["input_ids"], tokenizer("the king of spain")["input_ids"]
    rest = row.word_starts[1]
    assert ids[rest:] == sentence[len(sentence) - len(ids[rest:]) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "words", [["the", "\u200b", "dog"], ["", "the", "dog"], ["the", "dog", "\x00"], ["\u200b", "\x01"]]
)
def test_every_word_has_a_place_also_one_that_the_tokenizer_drops(
    tokenizer_of: Tokenizer, make_task: MakeTask, family: str, words: list[str]
) -> None:
    """Otherwise the labels of the words after it would move to their neighbours."""
    tokenizer, task = tokenizer_of(family), make_task("token-classification")
    (row,) = encode(task, tokenizer, [{"words": words}])
    assert len(row.word_starts) == len(words)
    assert len(set(row.word_starts)) == len(words)
    if "dog" in words:
        (plain,) = encode(task, tokenizer, [{"words": ["a", "dog"]}])
        first = plain.sequences[0]["input_ids"][plain.word_starts[1]]
        assert row.sequences[0]["input_ids"][row.word_starts[words.index("dog")]] == first


def test_words_that_were_cut_off_have_no_place(bert: Any, make_task: MakeTask) -> None:
    words = ["the", "quick", "\u200b", "fox", "jumps", "over"]
    (row,) = encode(make_task("token-classification", max_length=6), bert, [{"words": words}])
    assert row.length == 6
    assert row.word_starts == (1, 2, 3, 4)


def test_a_row_without_words_has_special_tokens_alone(bert: Any, make_task: MakeTask) -> None:
    (row,) = encode(make_task("token-classification"), bert, [{"words": []}])
    assert (row.word_starts, row.length) == ((), 2)


def test_words_come_as_a_list_or_as_a_text() -> None:
    assert words_of({"w": ["a b", "c"]}, "w") == ["a b", "c"]
    assert words_of({"w": " a  b\nc "}, "w") == ["a", "b", "c"]
    assert words_of({"w": ("a",)}, "w") == ["a"]


@pytest.mark.parametrize("row", [{}, {"w": None}, {"w": 5}, {"w": ["a", 5]}, {"w": {"a": 1}}])
def test_what_is_no_words_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no words in the field 'w'"):
        words_of(row, "w")


def test_what_is_no_text_is_refused() -> None:
    assert text_of({"t": ""}, "t") == ""
    with pytest.raises(DataError, match="no text in the field 't'; found: fields a, b"):
        text_of({"a": "x", "b": "y"}, "t")
    with pytest.raises(DataError, match="no text in the field 't'; found: int in 't'; expected: a string"):
        text_of({"t": 5}, "t")


ROWS = [
    Encoded(({"input_ids": [5, 6, 7], "token_type_ids": [0, 0, 1], "attention_mask": [1, 1, 1]},)),
    Encoded(({"input_ids": [8], "token_type_ids": [1], "attention_mask": [1]},)),
]


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_padding_goes_where_the_tokenizer_wants_it(
    bert: Any, side: str, ids: list[list[int]], mask: list[list[int]]
) -> None:
    bert.padding_side = side
    batch = collate(bert, ROWS)
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(batch, torch.int64)
    assert (batch["input_ids"].tolist(), batch["attention_mask"].tolist()) == (ids, mask)
    assert batch["token_type_ids"].tolist()[0] == [0, 0, 1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_what_the_tokenizer_itself_pads(
    tokenizer_of: Tokenizer, make_task: MakeTask, family: str, side: str
) -> None:
    tokenizer = tokenizer_of(family)
    tokenizer.padding_side = side
    texts = ["a good film", "bad", "what a boring slow story"]
    found = collate(tokenizer, encode(make_task("regression"), tokenizer, [{"text": text} for text in texts]))
    wanted = tokenizer(texts, padding=True, return_tensors="pt")
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_choices_have_a_dimension_of_their_own(bert: Any, make_task: MakeTask, task_rows: TaskRows) -> None:
    rows = encode(make_task("multiple-choice"), bert, task_rows["multiple-choice"])
    batch = collate(bert, rows)
    length = max(row.length for row in rows)
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(4, 2, length)}
    for i, row in enumerate(rows):
        for j, sequence in enumerate(row.sequences):
            assert batch["input_ids"][i, j][batch["attention_mask"][i, j].bool()].tolist() == sequence["input_ids"]


def test_a_tokenizer_without_padding_pads_with_its_end(tokenizer_of: Tokenizer) -> None:
    tokenizer = tokenizer_of("gpt2")
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


def test_a_checkpoint_without_a_tokenizer_is_refused(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((tiny_checkpoint("bert") / name).read_bytes())
    with pytest.raises(BackboneError, match="tokenizer"):
        load_tokenizer(open_checkpoint(str(tmp_path)))
