"""Questions to tasks of any kind: what a task takes, what is posted for it, and its answer as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from serving.console.client import EndpointClient
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.package.task_spec import (
    EMBEDDING,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    REGRESSION,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
)
from sparsehub.task_ref import is_composed

MOST_FIELDS = 8
NEW_TOKENS = 64  # of a text that is generated here
SCORE, WORDS, LABEL, LABELS, TEXT, VECTOR = "score", "words", "label", "labels", "text", "embedding"
_GIVES = {
    TEXT_CLASSIFICATION: LABEL,
    MULTIPLE_CHOICE: LABEL,
    MULTI_LABEL: LABELS,
    REGRESSION: SCORE,
    TOKEN_CLASSIFICATION: WORDS,
}
_PROMPT = ("prompt",)
_TWO_TEXTS = ("first text", "second text")  # two vectors say more to a reader than one: their cosine


@dataclass(frozen=True)
class TaskForm:
    """What a task takes and gives. fields: names of its texts, in order; gives: one of the six above."""

    reference: str
    fields: tuple[str, ...]
    gives: str


@dataclass(frozen=True)
class SentRequest:
    """What the page posted, so that it can be shown as it is to be sent by others."""

    route: str  # below /v1
    body: Mapping[str, Any]


@dataclass(frozen=True)
class ShownAnswer:
    """One task's answer. text: HTML that is safe."""

    text: str
    raw: Any = None  # the endpoint's own answer
    probabilities: Mapping[str, float] | None = None  # by label
    words: Sequence[tuple[str, str | None]] | None = None  # each with its label
    task: str = ""  # that was asked


async def form_of(ask: EndpointClient, reference: str) -> TaskForm:
    """Raises `RequestError`, also for a task with more fields than the page has boxes."""
    if not reference:
        raise RequestError("choose a task first")
    if (card := await _card_of(ask, reference)) is not None:
        return _checked_form(TaskForm(reference, *card))
    metadata = await ask.get(f"/v2/models/{quote(reference, safe='')}")
    outputs = {output["name"]: output["shape"] for output in metadata["outputs"]}
    fields = tuple(tensor["name"] for tensor in metadata["inputs"])
    if outputs.get("probs") == [-1, 0]:
        return TaskForm(reference, _PROMPT, TEXT)
    if VECTOR in outputs:
        return TaskForm(reference, _TWO_TEXTS, VECTOR)
    gives = next(kind for kind in (SCORE, WORDS, LABEL, LABELS) if kind in outputs)
    return _checked_form(TaskForm(reference, fields, gives))


def _checked_form(form: TaskForm) -> TaskForm:
    if len(form.fields) > MOST_FIELDS:
        raise RequestError("this task has more fields than the console shows", found=len(form.fields))
    return form


async def _card_of(ask: EndpointClient, reference: str) -> tuple[tuple[str, ...], str] | None:
    """What an exact version takes and gives by the list of models, which asks no task: looking is not using. None where
    its package was not read yet, and for what is no single version."""
    if is_composed(reference) or "@" not in reference:
        return None
    try:
        card = await ask.get(f"/v1/models/{quote(reference, safe='@:')}")
    except RequestError:  # asking the task says what is wrong
        return None
    kind = card.get("kind")
    if kind == TEXT_GENERATION:
        return _PROMPT, TEXT
    if kind == EMBEDDING:
        return _TWO_TEXTS, VECTOR
    return (tuple(card["fields"]), _GIVES[kind]) if kind in _GIVES else None


def request_of(form: TaskForm, texts: Sequence[str]) -> SentRequest:
    """The request that asks one task. texts: in the order of its fields; what is beyond them is not its."""
    given = list(texts[: len(form.fields)])
    if form.gives == TEXT:
        return SentRequest("completions", {"model": form.reference, "prompt": given[0], "max_tokens": NEW_TOKENS})
    if form.gives == VECTOR:
        return SentRequest("score", {"model": form.reference, "text_1": given[0], "text_2": given[1]})
    one = len(given) == 1 or form.gives == WORDS
    item: Any = given[0] if one else dict(zip(form.fields, given, strict=True))
    route = "score" if form.gives == SCORE else "classify"
    return SentRequest(route, {"model": form.reference, "input": [item]})


async def answer_of(ask: EndpointClient, form: TaskForm, texts: Sequence[str]) -> ShownAnswer:
    """Ask the route that clients ask; raises `AnswerError`."""
    sent = request_of(form, texts)
    return shown_answer(form.reference, await ask.post(f"/v1/{sent.route}", dict(sent.body)))


def failed_answer(reference: str, error: SparsehubError | str) -> ShownAnswer:
    """An error in the answer's place: an older answer would look like this one's."""
    return ShownAnswer(f'<p class="bad" role="alert">{escape(str(error))}</p>', task=reference)


def shown_answer(reference: str, raw: Mapping[str, Any]) -> ShownAnswer:
    """What a task answered to one input. raw: the whole answer, or the part of one that asked several tasks."""
    if "choices" in raw:
        return ShownAnswer(f"<pre>{escape(raw['choices'][0]['text'])}</pre>{_who(raw)}", raw, task=reference)
    entry = raw["data"][0]
    if "error" in entry:
        return failed_answer(reference, entry["error"]["message"])
    if "score" in entry:
        return ShownAnswer(f'<p class="number">{entry["score"]:.6g}</p>{_who(raw)}', raw, task=reference)
    if "words" in entry:
        words = [part for word in entry["words"] for part in ((word["word"], word["label"]), (" ", None))]
        return ShownAnswer(_who(raw), raw, words=words, task=reference)
    text, probabilities = _who(raw), dict(zip(raw["labels"], entry["probs"], strict=True))
    if "labels" in entry:
        given = ", ".join(map(escape, entry["labels"])) or "none of the labels"
        text = f'<p class="labels">{given}</p>{text}'
    return ShownAnswer(text, raw, probabilities=probabilities, task=reference)


def _who(raw: Mapping[str, Any]) -> str:
    """Which package gave the answer."""
    task, digest = escape(str(raw.get("task", raw["model"]))), escape(str(raw.get("digest", "")))
    tokens = raw["usage"]["total_tokens"]
    return f'<p class="who">answered by <b>{task}</b> <code>{digest[:19]}</code>, {tokens} tokens</p>'
