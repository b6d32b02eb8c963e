"""The answers of several tasks to the same texts, from one backbone in this process; `sparsehub ask` prints them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sparsehub.errors import SparsehubError, UsageError
from sparsehub.package.task_spec import EMBEDDING, TEXT_GENERATION

if TYPE_CHECKING:
    from concurrent.futures import Future

    from sparsehub.backbone import Backbone
    from sparsehub.engine import Engine
    from sparsehub.package import Package
    from sparsehub.package.outputs import Prediction

TEXTS, ROWS = 64, 1024  # asked together, at most; rows are texts times tasks


@dataclass(frozen=True)
class Answer:
    """What one task says of one text."""

    package: Package
    prediction: Prediction | None  # None where the task could not answer
    error: SparsehubError | None = None


def ask(packages: Sequence[Package], inputs: Iterable[Any], backbone: Backbone) -> Iterator[tuple[Any, list[Answer]]]:
    """Each input with its answers, one a package, in order; inputs are read as they are needed.

    inputs: what `Engine.classify` takes: a text, or a mapping of a task's fields. An input that a task cannot read has
    that task's error in place of its answer. Raises `UsageError` for text generation, and `BackboneMismatchError` for a
    package of another backbone.
    """
    from sparsehub.engine import Engine

    for package in packages:
        if package.manifest.task.kind == EMBEDDING:
            fix = "serve it (sparsehub serve) and post to /v1/embeddings or /v1/score"
            raise UsageError(f"{package.manifest.name} gives vectors, it does not answer with labels", fix=fix)
        if package.manifest.task.kind == TEXT_GENERATION:
            fix = "serve it (sparsehub serve) and post to /v1/completions"
            raise UsageError(f"{package.manifest.name} writes text, it does not answer with labels", fix=fix)
    with Engine(backbone) as engine:
        references = {package.digest: f"{engine.add(package).name}@{package.digest}" for package in packages}
        stream = iter(inputs)
        together = max(1, min(TEXTS, ROWS // len(packages)))
        while some := list(islice(stream, together)):
            # All are queued before one is awaited, so that what the tasks share of a text runs once.
            queued = [_queued(engine, references[package.digest], package, some) for package in packages]
            columns = [[_answer(package, row) for row in its] for package, its in zip(packages, queued, strict=True)]
            yield from zip(some, map(list, zip(*columns, strict=True)), strict=True)


def _queued(
    engine: Engine, reference: str, package: Package, inputs: Sequence[Any]
) -> list[Future[Prediction] | SparsehubError]:
    """All inputs together; one by one where one of them cannot be read."""
    inputs = [_fields(package, given) for given in inputs]
    try:
        return [*engine.classify(reference, inputs).futures]
    except SparsehubError as error:
        if len(inputs) == 1:
            return [error]
        return [row for given in inputs for row in _queued(engine, reference, package, [given])]


def _answer(package: Package, row: Future[Prediction] | SparsehubError) -> Answer:
    try:
        return Answer(package, None, row) if isinstance(row, SparsehubError) else Answer(package, row.result())
    except SparsehubError as error:
        return Answer(package, None, error)


def _fields(package: Package, given: Any) -> Any:
    """Those fields of a mapping that the task reads: rows of a file have more, and other tasks read others."""
    task = package.manifest.task
    if not isinstance(given, Mapping):
        return given
    wanted = (*task.text_fields, *task.choice_fields)
    return {name: given[name] for name in wanted if name in given}
