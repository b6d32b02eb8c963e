"""What log probabilities say of each token: its own bytes, and where it begins in the text as it is sent."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from sparsehub.engine.generation.output_processor import OutputProcessor
from sparsehub.engine.generation.request import Generation, Sampling, TextDelta
from sparsehub.engine.generation.sampling import SampledToken
from sparsehub.engine.generation.token_bytes import TokenBytes
from sparsehub.package.encoding import text_ids

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TEXTS = ["the tide", "a 🦊 and 鳥", "é́", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\x00\ufffd", "a  b\n\tc", "The Quay: 'why?'"]


def byte_fallback() -> Any:
    """As Llama's first vocabularies: what it does not know it writes byte by byte."""
    pieces = [
        *SPECIAL.values(),
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdeht",
        "th",
        "the",
        "▁the",
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **SPECIAL)


def word_pieces() -> Any:
    pieces = [*SPECIAL.values(), "[UNK]", "the", "tide", "fox", "##es", "##t", "a", "."]
    made = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **SPECIAL)


@pytest.fixture(scope="module")
def byte_level(tiny_language: Any) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_language.folder)


@pytest.fixture(scope="module", params=["byte level", "byte fallback"])
def tokenizer(request: pytest.FixtureRequest, byte_level: Any) -> Any:
    return byte_level if request.param == "byte level" else byte_fallback()


def joined(tokenizer: Any, ids: list[int]) -> bytes:
    known = TokenBytes(tokenizer)
    return b"".join(known.of(token, begins=place == 0) for place, token in enumerate(ids))


def said(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[OutputProcessor, list[TextDelta]]:
    """The processor of a text whose tokens are these, as far as it goes; and its parts."""
    generation = Generation("g", (1,), len(ids), Sampling(len(ids), stop=stop, logprobs=2), None, None)
    output = OutputProcessor(generation, tokenizer, TokenBytes(tokenizer), [tokenizer.eos_token_id])
    for token in ids:
        if output.finish is None:
            output.push(token, SampledToken(-1.0, ((token, -1.0), (token, -2.0))))
    generation.future.set_result(output.completion())
    generation.emit(None)
    return output, list(generation.pieces())


@given(
    text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="▁"), max_size=30) | st.sampled_from(TEXTS)
)
def test_the_bytes_of_all_tokens_are_the_text(tokenizer: Any, text: str) -> None:
    assert joined(tokenizer, text_ids(tokenizer, text, whole=False)) == text.encode()


def test_a_part_of_a_character_is_its_own_bytes(tokenizer: Any) -> None:
    ids = text_ids(tokenizer, "🦊", whole=False)
    known = TokenBytes(tokenizer)
    assert len(ids) > 1 and all(b"\xef\xbf\xbd" not in known.of(token, begins=False) for token in ids)


def test_word_pieces_bring_the_space_before_them() -> None:
    tokenizer = word_pieces()
    ids = text_ids(tokenizer, "the foxes tide.", whole=False)
    assert joined(tokenizer, ids).decode() == tokenizer.decode(ids) == "the foxes tide."
    assert [TokenBytes(tokenizer).of(token, begins=False) for token in ids[:3]] == [b" the", b" fox", b"es"]


def test_a_special_token_is_spelt(tokenizer: Any) -> None:
    assert TokenBytes(tokenizer).of(tokenizer.eos_token_id, begins=False) == b"</s>"


@given(
    text=st.text(alphabet="abct he🦊鳥", min_size=1, max_size=30),
    stop=st.lists(st.text(alphabet="the🦊 ", min_size=1, max_size=4), max_size=2),
)
def test_every_token_says_where_it_begins_in_the_text_as_sent(byte_level: Any, text: str, stop: list[str]) -> None:
    output, pieces = said(byte_level, text_ids(byte_level, text, whole=False), tuple(stop))
    done, logs = output.completion(), [log for piece in pieces for log in piece.logs]
    assert list(done.logs) == logs
    whole, before = done.text.encode(), b""
    for log in logs:
        assert log.offset == len(before.decode(errors="ignore")) and log.offset < len(done.text)
        before += log.bytes
    if done.finish == "stop":
        assert before.startswith(whole)  # a token may go on in the stop text
    else:
        assert before == whole and len(logs) == len(done.tokens)


def test_a_parts_logs_are_of_tokens_that_begin_in_it_or_before(byte_level: Any) -> None:
    _, pieces = said(byte_level, text_ids(byte_level, "the 🦊 waits by the quay", whole=False), ("quack",))
    sent = 0
    for piece in pieces:
        sent += len(piece.text)
        assert all(log.offset < sent for log in piece.logs)


def test_an_end_token_is_reported_after_the_text(byte_level: Any) -> None:
    output, _ = said(byte_level, [*text_ids(byte_level, "the tide", whole=False), byte_level.eos_token_id])
    last = output.completion().logs[-1]
    assert (last.bytes, last.offset, output.finish) == (b"</s>", len("the tide"), "stop")
