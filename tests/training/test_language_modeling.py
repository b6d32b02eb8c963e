"""Rows of text generation: what is context, what is learned, and that packing changes nothing but the shape."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehub.engine.generation.entrypoint import prompt_ids
from sparsehub.errors import DataError
from sparsehub.package.task_spec import TaskSpec
from sparsehub.training.data import Split
from sparsehub.training.fitting import keep_no_cache
from sparsehub.training.language_modeling import TOKENS, Tokens, collate_tokens, pack, row_scores, tokenised
from sparsehub.training.metrics import IGNORED, compute

METRICS = ("perplexity", "exact_match", "token_accuracy")


def task(text: str = "text", label: str = "", length: int = 48) -> TaskSpec:
    return TaskSpec("text-generation", (), "next_token", (text,), label, length, METRICS)


@pytest.fixture(scope="module")
def tokenizer(tiny_language):
    return transformers.AutoTokenizer.from_pretrained(tiny_language.folder)


@pytest.fixture(scope="module")
def model(tiny_language):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_language.folder).eval()
    keep_no_cache(model)
    return model


def rows_of(rows, spec, tokenizer, **options) -> list[Tokens]:
    return [row[TOKENS] for row in tokenised(Split("rows", rows, [None] * len(rows)), spec, tokenizer, **options).rows]


def learned(tokenizer, row: Tokens) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


def test_a_whole_text_is_learned_and_a_long_one_goes_on_in_the_next_row(tokenizer):
    text = "Why? Why is the tide by the quay? Why, why, why? " * 8
    rows = rows_of([{"text": text}], task(length=40), tokenizer)
    assert len(rows) > 2 and all(len(row) <= 40 for row in rows)
    assert tokenizer.decode([token for row in rows for token in row.ids]) == text + tokenizer.eos_token
    assert all(row.labels == (IGNORED, *row.ids[1:]) for row in rows)


def test_of_a_prompt_and_completion_the_completion_and_its_end_are_learned(tokenizer):
    row = rows_of([{"ask": "Who waits?", "answer": " The tide."}], task("ask", "answer"), tokenizer)[0]
    assert learned(tokenizer, row) == " The tide.</s>"
    prompt = tokenizer("Who waits?")["input_ids"]
    assert list(row.ids[: len(prompt)]) == prompt  # as it is when the model is served


def test_of_a_conversation_all_that_the_assistant_says_is_learned(tokenizer):
    messages = [
        {"role": "user", "content": "Who waits?"},
        {"role": "assistant", "content": "The tide."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "By the quay."},
    ]
    row = rows_of([{"messages": messages}], task("messages", length=128), tokenizer)[0]
    assert learned(tokenizer, row) == "The tide.</s>By the quay.</s>"
    assert tokenizer.decode(row.ids) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_special_token_that_a_row_spells_is_text_as_it_is_when_served(tokenizer):
    text, end = "the </s> tide <s>", tokenizer.eos_token_id
    rows = [{"text": text}, {"ask": text, "answer": text}]
    specs = [task("text"), task("ask", "answer")]
    for row, spec, times in zip(rows, specs, (1, 2), strict=True):
        ids = list(rows_of([row], spec, tokenizer)[0].ids)
        served = prompt_ids(tokenizer, text)
        assert ids == served * times + [end] and end not in served
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    row = rows_of([{"messages": messages}], task("messages", length=128), tokenizer)[0]
    assert list(row.ids).count(end) == 1 and row.ids[-1] == end
    served = prompt_ids(tokenizer, messages[:1])
    assert list(row.ids[: len(served)]) == served and learned(tokenizer, row) == f"{text}</s>"


def test_a_long_prompt_loses_its_beginning_not_its_answer(tokenizer):
    row = rows_of([{"a": "the tide " * 100, "b": "waits"}], task("a", "b", length=24), tokenizer)[0]
    assert len(row) == 24 and learned(tokenizer, row) == "waits</s>" and row.labels[0] == IGNORED


@pytest.mark.parametrize(
    ("rows", "spec", "says"),
    [
        ([{"text": 3}], task(), "row 1"),
        ([{"text": "a tide"}, {"text": None}], task(), "row 2"),
        ([{"m": [{"role": "user", "content": "Who?"}]}], task("m"), "no answer"),
        ([{"m": [{"role": "user"}]}], task("m"), "not a message"),
        ([{"a": "", "b": "waits"}], task("a", "b"), "prompt has no tokens"),
        ([{"a": "who", "b": 1}], task("a", "b"), "no text in the field 'b'"),
    ],
)
def test_a_row_that_is_no_text_is_refused_by_its_number(rows, spec, says, tokenizer):
    with pytest.raises(DataError, match=says):
        rows_of(rows, spec, tokenizer)


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=20)


@given(lengths, st.integers(30, 60))
def test_packing_keeps_every_token_in_order_with_its_own_position(lengths, limit):
    rows = [Tokens(tuple(range(i, i + n)), tuple(range(i, i + n))) for i, n in enumerate(lengths)]
    packed = pack(rows, limit)
    assert [t for row in packed for t in row.ids] == [t for row in rows for t in row.ids]
    assert [p for row in packed for p in row.positions] == [p for n in lengths for p in range(n)]
    assert all(len(row) <= limit for row in packed)
    assert all(len(a) + row.starts[1] > limit for a, row in itertools.pairwise(packed) if len(row.starts) > 1)


@settings(max_examples=10)
@given(st.lists(st.integers(2, 20), min_size=2, max_size=6), st.integers(0, 1000))
def test_no_packed_text_sees_another(model, tokenizer, lengths, seed):
    """The model's own loss of a packed row is the mean over its texts' tokens, each text run alone."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(3, len(tokenizer), (length,), generator=draw).tolist()
        rows.append(Tokens(tuple(ids), (IGNORED, *ids[1:])))
    with torch.inference_mode():
        alone = sum(float(model(**collate_tokens([row], tokenizer)).loss) * (len(row) - 1) for row in rows)
        together = float(model(**collate_tokens(pack(rows, 200), tokenizer)).loss)
    assert math.isclose(together, alone / sum(len(row) - 1 for row in rows), rel_tol=1e-4)


def test_metrics_are_those_of_each_row_alone(model, tokenizer, tiny_language):
    spec = task(length=96)
    rows = rows_of([{"text": said} for said in tiny_language.speeches("CLERK")[:8]], spec, tokenizer)
    with torch.inference_mode():
        batch = collate_tokens(rows, tokenizer)
        found = compute(spec, row_scores(model(**batch).logits, batch["labels"]).numpy(), batch["labels"].numpy())
        losses = [(float(model(**collate_tokens([row], tokenizer)).loss), len(row) - 1) for row in rows]
    expected = math.exp(sum(loss * n for loss, n in losses) / sum(n for _, n in losses))
    assert math.isclose(found["perplexity"], expected, rel_tol=1e-4)
    assert 0 < found["token_accuracy"] < 1


def test_an_exact_match_is_what_greedy_generation_says(model, tokenizer):
    prompt = "BAKER:\nWarm bread, warm bread! The tide"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False, eos_token_id=-1)[
        0, ids.shape[1] :
    ].tolist()
    right = Tokens((*ids[0].tolist(), *said), (*[IGNORED] * ids.shape[1], *said))
    wrong = Tokens((*right.ids[:-1], 5), (*right.labels[:-1], 5 if said[-1] != 5 else 6))
    with torch.inference_mode():
        batch = collate_tokens([right, wrong], tokenizer)
        scores = row_scores(model(**batch).logits, batch["labels"])
    assert scores[:, 3].tolist() == [1.0, 0.0]
    assert compute(task(), scores.numpy(), batch["labels"].numpy())["exact_match"] == 0.5
