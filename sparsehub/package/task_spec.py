"""What a task is, as a manifest says it: its kind, inputs, labels and head."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from sparsehub.errors import ManifestError

MAX_LABELS = 100_000
TEXT_CLASSIFICATION = "text-classification"
MULTI_LABEL = "multi-label-classification"
REGRESSION = "regression"
MULTIPLE_CHOICE = "multiple-choice"
TOKEN_CLASSIFICATION = "token-classification"
TEXT_GENERATION = "text-generation"
EMBEDDING = "embedding"
HEADED_KINDS = (TEXT_CLASSIFICATION, MULTI_LABEL, REGRESSION, MULTIPLE_CHOICE, TOKEN_CLASSIFICATION)
KINDS = (*HEADED_KINDS, TEXT_GENERATION, EMBEDDING)
ONE_LABEL_KINDS = (TEXT_CLASSIFICATION, MULTIPLE_CHOICE)  # of which a row has one label
BY_ROW_KINDS = (*ONE_LABEL_KINDS, REGRESSION)  # of which a row is judged by itself
FORMAT_2_KINDS = (MULTI_LABEL, EMBEDDING)  # that format 1 did not have
PROBLEM_TYPES = {
    TEXT_CLASSIFICATION: "single_label_classification",
    MULTI_LABEL: "multi_label_classification",
    REGRESSION: "regression",
    MULTIPLE_CHOICE: "single_label_classification",
    TOKEN_CLASSIFICATION: "single_label_classification",
    TEXT_GENERATION: "next_token",
    EMBEDDING: "similarity",
}
_UNLABELLED = (REGRESSION, TEXT_GENERATION, EMBEDDING)
EVEN = 0.5  # the probability from which on a label of several is given, where nothing chose another

TRANSFORMERS, LINEAR, NONE = "transformers", "linear", "none"  # types of heads
LINEAR_KINDS = (TEXT_CLASSIFICATION, MULTI_LABEL, REGRESSION, MULTIPLE_CHOICE)  # kinds whose head may be a linear one
MEAN, FIRST, LAST, MAX = POOLINGS = ("mean", "first", "last", "max")
JOINT, SEPARATE, COSINE = PAIRS = ("joint", "separate", "cosine")


@dataclass(frozen=True)
class HeadSpec:
    """What turns the backbone's states into scores; `TaskSpec.head`. Pooling and `normalize` belong to linear heads and
    to embeddings, `pair` to linear heads alone."""

    # `transformers`: the class that transformers has for the kind; `linear`: one Linear on pooled states; `none`: the
    # backbone's own output layer, as text generation has it, or its pooled states, as an embedding
    type: str
    pooling: str | None = None  # of `POOLINGS`: how one vector is made of a sequence's states
    normalize: bool | None = None  # whether that vector is scaled to unit length
    # Of `PAIRS`: two texts are one sequence; or each is read alone and the head sees both (see `heads.features`), or
    # their cosine. `joint` where a row is one text.
    pair: str | None = None


TRANSFORMERS_HEAD, NO_HEAD, _BY_KIND = HeadSpec(TRANSFORMERS), HeadSpec(NONE), HeadSpec("")
_HEADS = {TEXT_GENERATION: NO_HEAD, EMBEDDING: HeadSpec(NONE, MEAN, normalize=True)}  # of kinds with no other choice


@dataclass(frozen=True)
class TaskSpec:
    """A task's inputs and outputs: what training, the engine and clients need to know of it."""

    kind: str  # one of `KINDS`
    labels: tuple[str, ...]  # in the order of the head's outputs; the choice fields for multiple choice; else empty
    problem_type: str  # as transformers' configurations name it; `PROBLEM_TYPES` has the one of each kind
    # One or two fields of a row. Multiple choice: they are joined into the context of every choice. Text generation:
    # one, a text, a prompt or a list of messages. Embedding: of a training row two, or three of a triplet; a request's
    # rows are single texts.
    text_fields: tuple[str, ...]
    # Of training rows; for text generation the completion, empty where the whole text is learned; several between
    # commas where each label of a multi-label classification has one (`label_columns`).
    label_field: str
    max_length: int  # tokens of one sequence, special tokens included
    metrics: tuple[str, ...]  # by name; the first one decides which checkpoint is best
    choice_fields: tuple[str, ...] = ()  # for multiple choice, the fields of a row with its choices
    thresholds: tuple[float, ...] = ()  # multi-label: by label, the probability from which on it is given; else empty
    head: HeadSpec = _BY_KIND  # by default that of transformers, none for text generation and embeddings

    def __post_init__(self) -> None:
        if self.head is _BY_KIND:
            object.__setattr__(self, "head", _HEADS.get(self.kind, TRANSFORMERS_HEAD))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The fields of a training row that hold its labels: one, or for multi-label one of 0 and 1 for each label."""
        return label_columns(self.kind, self.label_field)

    @property
    def num_outputs(self) -> int:
        """Width of the head: one per label; one for a regression and for each choice."""
        return 1 if self.kind in (REGRESSION, MULTIPLE_CHOICE) else len(self.labels)

    @functools.cached_property
    def reads_alone(self) -> bool:
        """Whether each text of a row is a sequence of its own."""
        return self.kind == EMBEDDING or self.head.pair in (SEPARATE, COSINE)


def check_task(task: TaskSpec) -> None:
    """Validate what the types cannot express; raises `ManifestError`."""
    require_that(task.kind in KINDS, f"unknown task kind {task.kind!r}, expected one of {', '.join(KINDS)}")
    require_that(
        task.problem_type == PROBLEM_TYPES[task.kind], f"problem type {task.problem_type!r} does not fit the kind"
    )
    require_that(len(set(task.labels)) == len(task.labels) <= MAX_LABELS, "labels are repeated or too many")
    unlabelled = task.kind in _UNLABELLED
    require_that(unlabelled or len(task.labels) >= 2, f"a {task.kind} task needs at least 2 labels")
    require_that(not (unlabelled and task.labels), f"a {task.kind} task has no labels")
    most = {TEXT_GENERATION: 1, EMBEDDING: 3}.get(task.kind, 2)
    require_that(1 <= len(task.text_fields) <= most, f"a {task.kind} task has 1 to {most} text fields")
    require_that(1 <= task.max_length <= 1 << 20, f"max_length {task.max_length} is out of range")
    expected_choices = task.labels if task.kind == MULTIPLE_CHOICE else ()
    require_that(task.choice_fields == expected_choices, "choice fields belong to multiple choice and are its labels")
    _check_thresholds(task)
    _check_head(task)


def label_columns(kind: str, label_field: str) -> tuple[str, ...]:
    """`TaskSpec.label_columns` of a task that is not made yet; empty where there is no label field."""
    fields = label_field.split(",") if kind == MULTI_LABEL else [label_field]
    return tuple(field.strip() for field in fields if field.strip())


def _check_thresholds(task: TaskSpec) -> None:
    expected = len(task.labels) if task.kind == MULTI_LABEL else 0
    require_that(len(task.thresholds) == expected, f"a {task.kind} task of these labels has {expected} thresholds")
    require_that(all(0 <= number <= 1 for number in task.thresholds), "a threshold is a probability, 0 to 1")


def _check_head(task: TaskSpec) -> None:
    head = task.head
    types = [NONE] if task.kind in _HEADS else [TRANSFORMERS, *([LINEAR] if task.kind in LINEAR_KINDS else [])]
    require_that(
        head.type in types, f"a {task.kind} task has no head of type {head.type!r}, expected {' or '.join(types)}"
    )
    stated = [name for name in ("pooling", "normalize", "pair") if getattr(head, name) is not None]
    if task.kind == EMBEDDING:
        require_that(head.pair is None, "an embedding's texts are read alone, and no head has a pair")
    elif head.type != LINEAR:
        require_that(not stated, f"{', '.join(stated)} belong to a linear head")
        return
    require_that(head.pooling in POOLINGS, f"unknown pooling {head.pooling!r}, expected one of {', '.join(POOLINGS)}")
    require_that(head.normalize is not None, "a head says whether its vectors are normalised")
    if task.kind == EMBEDDING:
        return
    require_that(head.pair in PAIRS, f"unknown pair {head.pair!r}, expected one of {', '.join(PAIRS)}")
    two = len(task.text_fields) == 2 and task.kind != MULTIPLE_CHOICE
    require_that(two or head.pair == JOINT, f"pair {head.pair!r} needs two text fields that are not choices")
    require_that(head.pair != COSINE or task.kind == REGRESSION, "the cosine of a pair is for a regression")


def require_that(condition: object, problem: str) -> None:
    """Raises `ManifestError` with `problem` unless the condition holds."""
    if not condition:
        raise ManifestError(problem)
