"""What of a text is tokenised: never more than a sequence needs, and never other tokens than the whole text gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsehub.engine.input_bounds import CHUNK_CHARACTERS, MARGIN, bounded_row, check_prompt, chunks
from sparsehub.engine.input_processor import text_spec
from sparsehub.errors import RequestError
from sparsehub.package.encoding import encode
from sparsehub.package.task_spec import TOKEN_CLASSIFICATION

LIMIT = 16
FAMILIES = ("bert", "roberta", "deberta-v2", "llama", "gpt2")
PIECES = st.sampled_from(["the fox ", ".", "  ", "\n", "a", "ä", "语", "🙂", "[SEP]", "x" * 101, "1234 ", "!? "])
SPEC = text_spec(LIMIT)
PAIR = dataclasses.replace(SPEC, text_fields=("one", "two"))


class Counting:
    """A tokenizer that notes how many characters it was given."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.characters = tokenizer, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self.tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.fixture(scope="module")
def tokenizers(tiny_checkpoint: Callable[[str], Path]) -> Mapping[str, Any]:
    from transformers import AutoTokenizer

    return {family: AutoTokenizer.from_pretrained(tiny_checkpoint(family)) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_is_cut_first_gets_the_tokens_that_it_would_have_had(
    tokenizers: Mapping[str, Any], family: str
) -> None:
    tokenizer = tokenizers[family]

    @settings(max_examples=25)
    @given(st.lists(PIECES, min_size=1, max_size=12), st.integers(300, 1000))
    def check(pieces: list[str], times: int) -> None:
        row = {"input": ("".join(pieces) * times)[:9000]}
        try:
            bounded = bounded_row(SPEC, tokenizer, row, 0, truncate=True)
        except RequestError:  # not to be known without a look at all of it
            assert len(tokenizer(row["input"][:4096])["input_ids"]) < LIMIT + MARGIN + 2
            return
        assert encode(SPEC, tokenizer, [bounded]) == encode(SPEC, tokenizer, [row])

    check()


@pytest.mark.parametrize("fields", [("long", "short"), ("short", "long"), ("long", "long")])
def test_a_pair_is_cut_as_it_would_have_been(tokenizers: Mapping[str, Any], fields: tuple[str, str]) -> None:
    texts = {"long": "the quick brown fox. " * 200, "short": "a dog"}
    row = dict(zip(("one", "two"), (texts[field] for field in fields), strict=True))
    bounded = bounded_row(PAIR, tokenizers["bert"], row, 0, truncate=True)
    assert encode(PAIR, tokenizers["bert"], [bounded]) == encode(PAIR, tokenizers["bert"], [row])


def test_words_behind_the_limit_are_not_looked_at(tokenizers: Mapping[str, Any]) -> None:
    spec = dataclasses.replace(SPEC, kind=TOKEN_CLASSIFICATION)
    for words in (["fox", "."] * 5000, "the fox " * 5000):
        row = {"input": words}
        bounded = bounded_row(spec, tokenizers["bert"], row, 0, truncate=True)
        assert len(bounded["input"]) == LIMIT + 1
        assert encode(spec, tokenizers["bert"], [bounded]) == encode(spec, tokenizers["bert"], [row])
        with pytest.raises(RequestError, match="input 3 is too long; found: more than 16 tokens"):
            bounded_row(spec, tokenizers["bert"], row, 3, truncate=False)


@pytest.mark.parametrize("unit", [".", "the ", "a" * 50 + " "])
@pytest.mark.parametrize("truncate", [True, False])
def test_the_work_does_not_grow_with_the_text(tokenizers: Mapping[str, Any], unit: str, truncate: bool) -> None:
    counting = Counting(tokenizers["bert"])
    row = {"input": unit * 1_000_000}
    try:
        bounded_row(SPEC, counting, row, 0, truncate=truncate)
    except RequestError as error:
        assert not truncate or "characters" in str(error)
    assert counting.characters <= 64 * (LIMIT + MARGIN)


def test_a_long_text_of_few_tokens_is_refused_and_never_cut_in_silence(tokenizers: Mapping[str, Any]) -> None:
    row = {"input": "fox" + " " * 100_000 + "dog"}
    for truncate in (True, False):
        with pytest.raises(RequestError, match=r"input 0 is too long; found: .* characters; expected: at most 8704"):
            bounded_row(SPEC, tokenizers["bert"], row, 0, truncate=truncate)
    whole = {"input": "fox" + " " * 8000 + "dog"}
    assert bounded_row(SPEC, tokenizers["bert"], whole, 0, truncate=True) == whole


def test_a_prompt_is_refused_before_all_of_it_is_tokenised(tokenizers: Mapping[str, Any]) -> None:
    counting = Counting(tokenizers["gpt2"])
    with pytest.raises(RequestError, match="the prompt is too long"):
        check_prompt(counting, "." * 1_000_000, LIMIT)
    assert counting.characters <= 64 * (LIMIT + MARGIN)


@given(st.lists(st.integers(1, 2 * CHUNK_CHARACTERS), min_size=1, max_size=20))
def test_chunks_are_all_rows_in_order_and_small(lengths: list[int]) -> None:
    rows = [{"input": "a" * length} for length in lengths]
    found = list(chunks(rows))
    assert [row for chunk in found for row in chunk] == rows
    assert all(len(chunk) == 1 or sum(len(row["input"]) for row in chunk) <= CHUNK_CHARACTERS for chunk in found)
