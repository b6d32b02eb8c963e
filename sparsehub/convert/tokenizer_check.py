"""Whether a fine-tuned checkpoint's tokenizer does what the backbone's does, tried on texts: rows get the latter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsehub.backbone import Checkpoint
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import BackboneError
from sparsehub.package.task_spec import TEXT_GENERATION, TaskSpec

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model",
         "sentencepiece.bpe.model")  # fmt: skip
# What tokenizers are known to differ in: casing, accents, scripts, emoji, numbers, white space, control characters.
TEXTS = (
    "a plain sentence, with words that are known", "The Quick BROWN Fox", "Größe naïve café Ångström",
    "e\u0301 ñ \uff26\uff55\uff4c\uff4c", "漢字とかな", "한국어 문장", "русский текст", "اَلْعَرَبِيَّةُ", "🙂👩🏽 emoji",
    "12345 3.14 1,000 0007", "don't can't we'll", "http://example.org/a_b?c=d#e", "  leading and  double spaces ",
    "tabs\tand\nnew\r\nlines\n\n", "zero\u200bwidth\u00a0space", "snake_case camelCase",
    "!?;:()[]{}<>/\\|@#$%^&*~`", "x", "def f(x):\n    return x  # code",
)  # fmt: skip
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi! "}],
    [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Sure?"}],
)
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_SHOWN = 12  # token ids, or names, in a message


@dataclass(frozen=True)
class _Difference:
    """One thing that two tokenizers do otherwise."""

    what: str
    found: object
    expected: object
    matters: bool = True  # for what the task is given, or what it answers


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def check_tokenizer(base: Checkpoint, tuned: Checkpoint, task: TaskSpec) -> tuple[str, ...]:
    """What a report says of harmless differences; raises `BackboneError` for one that changes what a text becomes.

    tuned: the checkpoint, or an adapter's folder as one.
    """
    if not has_tokenizer(tuned.folder):
        return (f"{tuned.id} has no tokenizer of its own: the backbone's was taken for it",)
    differences = list(_differences(load_tokenizer(base), load_tokenizer(tuned), task))
    for found in differences:
        if found.matters:
            raise BackboneError(
                f"the tokenizer of {tuned.id} differs from the backbone's, which will read its texts: {found.what}",
                found=found.found,
                expected=found.expected,
                fix="give the backbone with this tokenizer, or tune again with the backbone's own",
            )
    return tuple(f"the tokenizer of {tuned.id}: {d.what} {d.found}, the backbone's {d.expected}" for d in differences)


def _differences(mine: Any, other: Any, task: TaskSpec) -> Iterator[_Difference]:
    yield from _vocabulary(mine, other)
    yield from _texts(mine, other)
    yield from _settings(mine, other, task)
    if task.kind == TEXT_GENERATION:
        yield from _templates(mine, other)


def _vocabulary(mine: Any, other: Any) -> Iterator[_Difference]:
    here, there = mine.get_vocab(), other.get_vocab()
    changed = sorted(token for token in here.keys() | there.keys() if here.get(token) != there.get(token))
    if changed:
        shown = changed[: _SHOWN // 2]
        yield _Difference(
            f"{len(changed):,} tokens of its vocabulary",
            ", ".join(f"{token!r}: {there.get(token, 'none')}" for token in shown),
            ", ".join(f"{token!r}: {here.get(token, 'none')}" for token in shown),
        )


def _texts(mine: Any, other: Any) -> Iterator[_Difference]:
    special = sorted({*mine.all_special_tokens, *other.all_special_tokens})
    texts = [*TEXTS, *(f"before {token} after" for token in special), "many words " * 40]
    for text in texts:
        yield from _read(mine, other, repr(text[:40]), (text,), {})
    yield from _read(mine, other, "a pair of texts", ("a first text", "and a second one"), {})
    long = {"truncation": True, "max_length": 16}
    yield from _read(mine, other, "a text that is cut", ("a long text of many words " * 9,), long)
    yield from _read(mine, other, "a pair that is cut", ("a long text " * 9, "and a second " * 9), long)
    words = {"is_split_into_words": True}
    yield from _read(mine, other, "a list of words", (["These", "words", "are", "Größer"],), words)


def _read(
    mine: Any, other: Any, what: str, texts: tuple[Any, ...], options: Mapping[str, Any]
) -> Iterator[_Difference]:
    here, there = (dict(tokenizer(*texts, verbose=False, **options)) for tokenizer in (mine, other))
    if here != there:
        name = next((n for n in ("input_ids", *here, *there) if here.get(n) != there.get(n)), "input_ids")
        found, expected = (str((table.get(name) or ["none"])[: _SHOWN * 2]) for table in (there, here))
        yield _Difference(f"it reads {what} otherwise ({name})", found, expected)


def _settings(mine: Any, other: Any, task: TaskSpec) -> Iterator[_Difference]:
    for role in _ROLES:
        here, there = (getattr(tokenizer, f"{role}_token_id", None) for tokenizer in (mine, other))
        if here != there:  # an end of text ends what is generated; what else is put into texts was seen in them
            yield _Difference(f"{role}_token_id", there, here, role == "eos" and task.kind == TEXT_GENERATION)
    if mine.truncation_side != other.truncation_side:
        yield _Difference("truncation_side", other.truncation_side, mine.truncation_side)
    if mine.padding_side != other.padding_side:  # padding is masked
        yield _Difference("padding_side", other.padding_side, mine.padding_side, matters=False)
    # A package says itself how long a row may be.
    if mine.model_max_length != other.model_max_length and other.model_max_length < task.max_length:
        yield _Difference("model_max_length", other.model_max_length, mine.model_max_length, matters=False)


def _templates(mine: Any, other: Any) -> Iterator[_Difference]:
    for conversation in CONVERSATIONS:
        for opened in (False, True):
            here, there = (_rendered(tokenizer, conversation, opened) for tokenizer in (mine, other))
            if here != there:
                yield _Difference("its chat template renders a conversation otherwise", repr(there), repr(here))
                return


def _rendered(tokenizer: Any, conversation: list[dict[str, str]], opened: bool) -> str:
    """A conversation as text, or why there is none."""
    if getattr(tokenizer, "chat_template", None) is None:
        return "no chat template"
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=opened))
    except Exception as error:  # a template raises what it likes, also for a role that it does not know
        return f"{type(error).__name__}: {error}"
