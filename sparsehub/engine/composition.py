"""Compositions: the task that `trec+tone*0.5` means is the sum of two deltas, with the head of the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sparsehub.delta.algebra import weighted_sum
from sparsehub.engine.task_registry import Task, TaskRegistry
from sparsehub.errors import BackboneMismatchError, UnknownTaskError
from sparsehub.files import canonical_json, sha256_bytes
from sparsehub.package import Package
from sparsehub.task_ref import Reference, Term, model_of


def find_task(registry: TaskRegistry, reference: Reference) -> Task:
    """A served task, or one that the reference composes of such (`trec+tone*0.5`); raises `UnknownTaskError`."""
    model = model_of(reference)
    try:
        return registry.find(model.task)
    except UnknownTaskError:
        if not model.terms:
            raise
        return composite(model.terms, registry)


def composite(terms: Sequence[Term], registry: TaskRegistry) -> Task:
    """The task that a composition means now; `Engine` loads it like any other. Its digest is made of its terms' digests
    and weights, so it changes when one of them is reloaded. Raises `UnknownTaskError`."""
    tasks = [(registry.find(term.task), term.weight) for term in terms]
    recipe = {"compose": [[task.digest, weight] for task, weight in tasks]}
    name = "+".join(task.name if weight == 1 else f"{task.name}*{weight:g}" for task, weight in tasks)
    digest = sha256_bytes(canonical_json(recipe))
    return Task(name, tasks[0][0].version, digest, lambda: _compose(tasks, name, digest), composed=True)


def _compose(tasks: Sequence[tuple[Task, float]], name: str, digest: str) -> Package:
    """Read every term's package and add the deltas up; raises `BackboneMismatchError` for terms of two backbones."""
    packages = [task.load() for task, _ in tasks]
    first = packages[0]
    for package in packages:
        if package.manifest.backbone.fingerprint != first.manifest.backbone.fingerprint:
            raise BackboneMismatchError(f"{package.manifest.name} and {first.manifest.name} are for two backbones")
    delta = weighted_sum([package.delta for package in packages], [weight for _, weight in tasks])
    base = next((package.manifest.delta for package in packages if package.manifest.delta is not None), None)
    record = base and dataclasses.replace(base, nnz=delta.nnz, value_dtype=delta.value_dtype)
    return Package(dataclasses.replace(first.manifest, name=name, delta=record), delta, first.head, digest)
