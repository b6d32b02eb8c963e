"""Text as it comes: all pieces together are the whole text, and nothing of a stop text gets out."""

from __future__ import annotations

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.engine.generation.detokenizer import TextStream


@pytest.fixture(scope="module")
def tokenizer(tiny_language):
    return transformers.AutoTokenizer.from_pretrained(tiny_language.folder)


def pieces_of(tokenizer, ids, stop=()) -> tuple[list[str], bool]:
    stream, pieces = TextStream(tokenizer, stop), []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.flush()], stream.stopped


@given(st.text(max_size=40))
def test_pieces_of_any_text_are_that_text(tokenizer, text):
    text = text.encode(errors="replace").decode()
    pieces, _ = pieces_of(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


@given(st.lists(st.integers(0, 399), max_size=40))
def test_pieces_of_any_tokens_are_what_they_decode_to(tokenizer, ids):
    assert "".join(pieces_of(tokenizer, ids)[0]) == tokenizer.decode(ids, skip_special_tokens=True)


@given(st.text("ab \n", max_size=30), st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_text_ends_before_the_first_stop_text_that_is_whole(tokenizer, text, stops):
    pieces, stopped = pieces_of(tokenizer, tokenizer(text)["input_ids"], stops)
    said = "".join(pieces)
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(said) and not any(stop in said for stop in stops)
    assert said == text if not stopped else any(text[len(said) :].startswith(stop) for stop in stops)


def test_half_a_character_waits_for_its_other_half(tokenizer):
    ids = tokenizer("鳥")["input_ids"]
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in ids] == [*[""] * (len(ids) - 1), "鳥"]
