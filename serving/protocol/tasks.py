"""Requests and responses of a task's routes: vLLM's shapes for classify and score, OpenAI's for embeddings, Cohere's
and Jina's for rerank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field, SerializeAsAny, SkipValidation, Strict, WithJsonSchema, with_config
from typing_extensions import TypedDict

from serving.protocol import neutral_fields
from serving.protocol.base import ApiModel, UsageInfo
from serving.protocol.errors import ErrorDetail, FailedItem
from serving.protocol.request_model import ListOf, OneTask, RequestModel, SomeTasks, Values

_TEXT: dict[str, Any] = {"type": "string"}
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT}
_FIELDS: dict[str, Any] = {"type": "object", "additionalProperties": {"anyOf": [_TEXT, _TEXTS]}}
_INPUTS: list[Any] = [_TEXT, _FIELDS, {"type": "array", "items": {"anyOf": [_TEXT, _FIELDS, _TEXTS]}}]
# What an input is depends on the task, which checks it: a malformed one is refused with the task's own words.
Inputs = Annotated[Any, WithJsonSchema({"anyOf": _INPUTS})]
OptionalInputs = Annotated[Any, WithJsonSchema({"anyOf": [*_INPUTS, {"type": "null"}]})]


TokenId = Annotated[int, Strict()]

# requests


class _InputsRequest(RequestModel):
    """What every request has beside its model."""

    neutral: ClassVar[Mapping[str, Values]] = neutral_fields.TASK
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Cut inputs at so many tokens instead of refusing them; -1: at the task's limit, which no other number exceeds."""


class TaskRequest(_InputsRequest):
    """A request for one task."""

    model: OneTask
    """The task: `name`, `name@version`, `name@sha256:...`, or tasks added up as in `one+two*0.5`."""


class TasksRequest(_InputsRequest):
    """A request for one task or several."""

    model: SomeTasks
    """The task: `name`, `name@version`, `name@sha256:...`, or tasks added up as in `one+two*0.5`. A list of such asks
    each of them, a pattern such as `support-*` those of the caller's tasks that it fits."""


class ClassifyRequest(TasksRequest):
    """Inputs to give labels to."""

    input: Inputs
    """One input or a list of them. An input is a text, an object with the task's fields, a pair of texts, or a list of
    words."""


class ScoreRequest(TasksRequest):
    """Inputs to give a number to: either `input`, or `text_1` and `text_2`."""

    input: OptionalInputs = None
    """As for classify."""
    text_1: str | ListOf[str] | None = None
    """A single one is paired with every `text_2`."""
    text_2: str | ListOf[str] | None = None


class RerankDocument(RequestModel):
    """A text as an object, as Cohere's clients send it."""

    text: str


class RerankRequest(TaskRequest):
    """Documents to put in the order of how well they fit a query."""

    neutral: ClassVar[Mapping[str, Values]] = neutral_fields.RERANK
    query: str
    documents: ListOf[str | RerankDocument] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    """How many of the best to return; null for all."""
    return_documents: bool = True
    """Whether a result holds its document's text."""


class EmbeddingsRequest(TasksRequest):
    """Texts to give vectors to. `model` may also be the backbone."""

    neutral: ClassVar[Mapping[str, Values]] = neutral_fields.EMBEDDINGS
    input: str | ListOf[str] | ListOf[TokenId] | ListOf[ListOf[TokenId]]
    """A text, several, token ids, or several lists of token ids, which are taken as they are: nothing is added."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    """Of a vector: as many as the backbone has, and no others."""


# responses


class ListResponse(ApiModel):
    """What stands before every list of answers. The digest says exactly which package gave them; where several tasks
    answer, it stands with the answers of each."""

    id: str
    object: Literal["list"]
    created: int
    """Seconds since 1970."""
    model: str | list[str]
    """As the request said it."""
    task: str | None = None
    """`name@version`; absent where the plain backbone answers, and where several tasks do."""
    version: str | None = None
    digest: str | None = None


class Classification(ApiModel):
    """One input's label."""

    index: int
    """Of the input in the request."""
    label: str
    probs: tuple[float, ...]
    """A probability for each label, in the order of `labels`."""
    num_classes: int


class LabelSet(ApiModel):
    """One input of multi-label classification: the labels that it gets, which may be none."""

    index: int
    """Of the input in the request."""
    labels: tuple[str, ...]
    """Those whose probability reaches their threshold."""
    probs: tuple[float, ...]
    """A probability for each label of the task, each by itself, in the order of `labels` beside `data`."""
    num_classes: int


@with_config(ApiModel.model_config)
class TaggedWord(TypedDict):
    """One word's label. It is a dictionary, since a request may have thousands of them and a model costs 6 us each."""

    word: str
    start: NotRequired[int]
    """Where the word begins in the text, in characters; absent where the input was a list of words."""
    end: NotRequired[int]
    label: str
    probs: tuple[float, ...]
    num_classes: int


class TaggedText(ApiModel):
    """One input of token classification: a label for every word. Words that were cut off have no entry."""

    index: int
    words: list[TaggedWord]


class ScoreItem(ApiModel):
    """One input's number."""

    index: int
    object: Literal["score"]
    score: float


class EmbeddingItem(ApiModel):
    """One text's unit vector."""

    object: Literal["embedding"]
    index: int
    # Not validated: it is the engine's own, and a thousand vectors of 384 numbers are much to look at twice.
    embedding: SerializeAsAny[SkipValidation[list[float] | str]]
    """Numbers, or where the request says base64, their little-endian float32."""


# SerializeAsAny: an item is written as the class that it is. As a union pydantic would write every item twice.


class TaskAnswers(ApiModel):
    """One task's answers in a response of several tasks."""

    index: int
    """Of the task in the request, or among those that the pattern means, which are sorted by name."""
    object: Literal["task_answers"]
    model: str
    """As the list said it; with a pattern the task's name."""
    task: str | None = None
    """`name@version`; absent where the plain backbone answers."""
    version: str | None = None
    digest: str | None = None
    data: list[SerializeAsAny[Classification | LabelSet | TaggedText | ScoreItem | EmbeddingItem | FailedItem]]
    """One item for each input, in order, as the task alone would answer."""
    labels: list[str] | None = None
    """All labels of the task, in the order of the probabilities; absent where it gives none."""
    thresholds: list[float] | None = None
    """As of a single task."""
    usage: UsageInfo
    """As if the task had been asked alone."""


class FailedTask(ApiModel):
    """What stands in a response of several tasks for one that failed alone."""

    index: int
    """As of `TaskAnswers`."""
    model: str
    error: ErrorDetail


class ClassifyResponse(ListResponse):
    """One item for each input, in order; where several tasks answer, one for each task, and `usage` counts tokens once
    for all that share layers and read the inputs alike."""

    data: list[SerializeAsAny[Classification | LabelSet | TaggedText | FailedItem | TaskAnswers | FailedTask]]
    usage: UsageInfo
    labels: list[str] | None = None
    """All labels of the task, in the order of the probabilities; absent where several tasks answer."""
    thresholds: list[float] | None = None
    """Multi-label: by label, the probability from which on it is given; absent elsewhere."""


class ScoreResponse(ListResponse):
    """As of classify."""

    data: list[SerializeAsAny[ScoreItem | FailedItem | TaskAnswers | FailedTask]]
    usage: UsageInfo


class EmbeddingsResponse(ListResponse):
    """As of classify."""

    data: list[SerializeAsAny[EmbeddingItem | FailedItem | TaskAnswers | FailedTask]]
    usage: UsageInfo


class RerankResult(ApiModel):
    """One document."""

    index: int
    """Of the document in the request."""
    relevance_score: float
    document: RerankDocument | None = None
    """Absent where the request wants no documents back."""


class RerankResponse(ApiModel):
    """The documents, the best first, and after them those that failed."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    """As the request said it."""
    task: str | None = None
    """`name@version`; absent where the plain backbone answers."""
    version: str | None = None
    digest: str | None = None
    usage: UsageInfo
    results: list[SerializeAsAny[RerankResult | FailedItem]]
