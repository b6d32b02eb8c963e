"""Tasks that a request composes: `trec+tone*0.5` is the sum of two deltas, with the head of the first."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsehub.delta.algebra import weighted_sum
from sparsehub.engine.task_registry import Task
from sparsehub.errors import BackboneMismatchError, RequestError
from sparsehub.files import canonical_json, sha256_bytes
from sparsehub.package import Package

MOST_PARTS = 8
_WEIGHT = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class CompositionTerm:
    """One term of a composition."""

    reference: str
    weight: float


def parse_composition(text: str) -> tuple[CompositionTerm, ...] | None:
    """`a+b*0.5` as its terms; None for a plain reference. Raises `RequestError` for a malformed one.

    A version may hold a plus sign: whoever serves `a@1.0+b` asks for it by its digest inside a composition.
    """
    terms = text.split("+")
    if len(terms) == 1 and "*" not in text:
        return None
    if len(terms) > MOST_PARTS:
        raise RequestError("too many tasks in one composition", found=len(terms), expected=f"at most {MOST_PARTS}")
    return tuple(_part(term, text) for term in terms)


def _part(term: str, text: str) -> CompositionTerm:
    reference, star, weight = term.strip().partition("*")
    if not reference or (star and not _WEIGHT.fullmatch(weight)) or not math.isfinite(float(weight or 1)):
        raise RequestError("not a composition", found=repr(text)[:200], expected="name, name+name or name+name*0.5")
    return CompositionTerm(reference.strip(), float(weight) if star else 1.0)


def composite(parts: Sequence[CompositionTerm], find: Callable[[str], Task]) -> Task:
    """The task that a composition means now. Its digest is one of its parts' digests and weights, so it is another when
    one of them is reloaded. Raises `UnknownTaskError`."""
    tasks = [(find(part.reference), part.weight) for part in parts]
    recipe = {"compose": [[task.digest, weight] for task, weight in tasks]}
    name = "+".join(task.name if weight == 1 else f"{task.name}*{weight:g}" for task, weight in tasks)
    digest = sha256_bytes(canonical_json(recipe))
    return Task(name, tasks[0][0].version, digest, lambda: _compose(tasks, name, digest), composed=True)


def _compose(tasks: Sequence[tuple[Task, float]], name: str, digest: str) -> Package:
    """Read every part and add their deltas up; raises `BackboneMismatchError` for parts of several backbones."""
    packages = [task.load() for task, _ in tasks]
    first = packages[0]
    for package in packages:
        if package.manifest.backbone.fingerprint != first.manifest.backbone.fingerprint:
            raise BackboneMismatchError(f"{package.manifest.name} and {first.manifest.name} are for two backbones")
    delta = weighted_sum([package.delta for package in packages], [weight for _, weight in tasks])
    record = dataclasses.replace(first.manifest.delta, nnz=delta.nnz, value_dtype=delta.value_dtype)
    return Package(dataclasses.replace(first.manifest, name=name, delta=record), delta, first.head, digest)
