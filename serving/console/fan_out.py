"""Several tasks on the same text: in one request wherever one can carry them, as clients are told to ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.console.client import EndpointClient
from serving.console.task_forms import (
    SentRequest,
    ShownAnswer,
    TaskForm,
    failed_answer,
    form_of,
    request_of,
    shown_answer,
)
from sparsehub.errors import RequestError, SparsehubError

_SEVERAL = ("classify", "score")  # routes whose `model` may be a list


@dataclass(frozen=True)
class FanOut:
    """What was posted, and the answers of all tasks in the order in which they were chosen."""

    answers: Sequence[ShownAnswer]
    sent: Sequence[SentRequest]


async def ask_tasks(ask: EndpointClient, references: Sequence[str], texts: Sequence[str]) -> FanOut:
    """Ask every task the same. A task that cannot be asked has its error in its place.

    references: the first one says what the texts are called; texts: in the order of its fields.
    """
    chosen = list(dict.fromkeys(references))
    forms = await asyncio.gather(*(_form(ask, reference) for reference in chosen))
    first = forms[0].fields if isinstance(forms[0], TaskForm) else ("text",)
    posts, failed = _posts(forms, dict(zip(first, texts, strict=False)))
    answered = await asyncio.gather(*(_post(ask, sent) for sent in posts))
    found = failed | {answer.task: answer for answers in answered for answer in answers}
    return FanOut([found[reference] for reference in chosen], posts)


def _posts(
    forms: Sequence[TaskForm | ShownAnswer], texts: Mapping[str, str]
) -> tuple[list[SentRequest], dict[str, ShownAnswer]]:
    """The requests that carry all tasks, and the errors of those that cannot be asked, by task."""
    groups: dict[str, list[SentRequest]] = {}
    failed: dict[str, ShownAnswer] = {}
    for form in forms:
        if isinstance(form, ShownAnswer):
            failed[form.task] = form
            continue
        try:
            sent = request_of(form, _texts_of(form, texts))
        except RequestError as error:
            failed[form.reference] = failed_answer(form.reference, error)
            continue
        groups.setdefault(_group(sent), []).append(sent)
    return [_as_one(group) for group in groups.values()], failed


def _texts_of(form: TaskForm, texts: Mapping[str, str]) -> list[str]:
    """The texts in the order of a task's own fields; raises `RequestError` where it reads others."""
    if len(form.fields) == len(texts) == 1:
        return list(texts.values())
    if set(form.fields) != set(texts):
        raise RequestError("it reads other texts", found=", ".join(texts), expected=", ".join(form.fields))
    return [texts[name] for name in form.fields]


def _group(sent: SentRequest) -> str:
    """Requests of the same name differ in nothing but the task, and can be one."""
    rest = {name: value for name, value in sent.body.items() if name != "model" or sent.route not in _SEVERAL}
    return json.dumps([sent.route, rest])


def _as_one(group: Sequence[SentRequest]) -> SentRequest:
    models = [sent.body["model"] for sent in group]
    return SentRequest(group[0].route, {**group[0].body, "model": models if len(models) > 1 else models[0]})


async def _form(ask: EndpointClient, reference: str) -> TaskForm | ShownAnswer:
    try:
        return await form_of(ask, reference)
    except SparsehubError as error:
        return failed_answer(reference, error)


async def _post(ask: EndpointClient, sent: SentRequest) -> list[ShownAnswer]:
    """The answers of one request's tasks; its error for each of them where it failed as a whole."""
    model = sent.body["model"]
    models = model if isinstance(model, list) else [model]
    try:
        raw = await ask.post(f"/v1/{sent.route}", dict(sent.body))
    except SparsehubError as error:
        return [failed_answer(name, error) for name in models]
    if len(models) == 1:
        return [shown_answer(model, raw)]
    return [_part(name, part) for name, part in zip(models, raw["data"], strict=True)]


def _part(reference: str, part: Mapping[str, Any]) -> ShownAnswer:
    if "error" in part:
        return failed_answer(reference, part["error"]["message"])
    return shown_answer(reference, part)
