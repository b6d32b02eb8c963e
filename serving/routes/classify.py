"""POST /v1/classify: labels and probabilities; vLLM's shape, with one entry per word for token classification."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serving.answering import failed_item, results
from serving.wire import ClassifyBody, as_list, envelope
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.package.manifest import REGRESSION
from sparsehub.package.outputs import Answer

router = APIRouter()


@router.post("/v1/classify")
async def classify(body: ClassifyBody, request: Request) -> dict[str, Any]:
    """One answer per input, from the task that `model` names."""
    service = request.app.state.service
    if (await service.info(body.model)).spec.kind == REGRESSION:
        raise RequestError(f"{body.model} gives a number, not a label", fix="post to /v1/score")
    ticket = await service.submit(service.engine.classify, body.model, as_list(body.input), body.truncate)
    answers = await results(request, ticket.futures)
    data = [_entry(i, answer) for i, answer in enumerate(answers)]
    return {**envelope("classify", body, ticket, data), "labels": list(ticket.task.spec.labels)}


def _entry(index: int, answer: Answer | SparsehubError) -> dict[str, Any]:
    if isinstance(answer, SparsehubError):
        return failed_item(index, answer)
    if answer.words:
        return {"index": index, "words": [_label(word) for word in answer.words]}
    return {"index": index, **_label(answer)}


def _label(answer: Answer) -> dict[str, Any]:
    return {"label": answer.label, "probs": list(answer.scores), "num_classes": len(answer.scores)}
