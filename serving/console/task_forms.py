"""One question to one task, whatever its kind, and its answer as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import quote

from serving.console.client import EndpointClient
from sparsehub.errors import RequestError

MOST_FIELDS = 8
NEW_TOKENS = 64  # of a text that is generated here
SCORE, WORDS, LABEL, LABELS, TEXT, VECTOR = "score", "words", "label", "labels", "text", "embedding"


@dataclass(frozen=True)
class TaskForm:
    """What a task takes and gives. fields: names of its texts, in order; gives: one of the six above."""

    reference: str
    fields: tuple[str, ...]
    gives: str


@dataclass(frozen=True)
class ShownAnswer:
    """probabilities: by label; words: each with its label; text: HTML that is safe; raw: the endpoint's own answer."""

    text: str
    raw: Any = None
    probabilities: Mapping[str, float] | None = None
    words: Sequence[tuple[str, str | None]] | None = field(default=None)


async def form_of(ask: EndpointClient, reference: str) -> TaskForm:
    """Raises `RequestError`, also for a task with more fields than the page has boxes."""
    if not reference:
        raise RequestError("choose a task first")
    metadata = await ask.get(f"/v2/models/{quote(reference, safe='')}")
    outputs = {output["name"]: output["shape"] for output in metadata["outputs"]}
    fields = tuple(tensor["name"] for tensor in metadata["inputs"])
    if len(fields) > MOST_FIELDS:
        raise RequestError("this task has more fields than the console shows", found=len(fields))
    if outputs.get("probs") == [-1, 0]:
        return TaskForm(reference, ("prompt",), TEXT)
    if VECTOR in outputs:  # two vectors say more to a reader than one: their cosine
        return TaskForm(reference, ("first text", "second text"), VECTOR)
    return TaskForm(reference, fields, next(kind for kind in (SCORE, WORDS, LABEL, LABELS) if kind in outputs))


async def answer_of(ask: EndpointClient, form: TaskForm, texts: Sequence[str]) -> ShownAnswer:
    """Ask the route that clients ask; raises `AnswerError`."""
    given = list(texts[: len(form.fields)])
    if form.gives == TEXT:
        body = {"model": form.reference, "prompt": given[0], "max_tokens": NEW_TOKENS}
        raw = await ask.post("/v1/completions", body)
        return ShownAnswer(f"<pre>{escape(raw['choices'][0]['text'])}</pre>{_who(raw)}", raw)
    if form.gives == VECTOR:
        raw = await ask.post("/v1/score", {"model": form.reference, "text_1": given[0], "text_2": given[1]})
        return _shown(raw, raw["data"][0])
    one = len(given) == 1 or form.gives == WORDS
    item: Any = given[0] if one else dict(zip(form.fields, given, strict=True))
    route = "score" if form.gives == SCORE else "classify"
    raw = await ask.post(f"/v1/{route}", {"model": form.reference, "input": [item]})
    return _shown(raw, raw["data"][0])


def _shown(raw: Any, entry: Mapping[str, Any]) -> ShownAnswer:
    if "score" in entry:
        return ShownAnswer(f'<p class="number">{entry["score"]:.6g}</p>{_who(raw)}', raw)
    if "words" in entry:
        words = [part for word in entry["words"] for part in ((word["word"], word["label"]), (" ", None))]
        return ShownAnswer(_who(raw), raw, words=words)
    if "labels" in entry:
        given = ", ".join(map(escape, entry["labels"])) or "none of the labels"
        text = f'<p class="labels">{given}</p>{_who(raw)}'
        return ShownAnswer(text, raw, probabilities=dict(zip(raw["labels"], entry["probs"], strict=True)))
    return ShownAnswer(_who(raw), raw, probabilities=dict(zip(raw["labels"], entry["probs"], strict=True)))


def _who(raw: Mapping[str, Any]) -> str:
    """Which package gave the answer."""
    task, digest = escape(str(raw.get("task", raw["model"]))), escape(str(raw.get("digest", "")))
    tokens = raw["usage"]["total_tokens"]
    return f'<p class="who">answered by <b>{task}</b> <code>{digest[:19]}</code>, {tokens} tokens</p>'
