"""The task registry: the tasks that an engine serves, by reference: `name`, `name@version`, `name@sha256:...`.

A composition, `trec+tone*0.5`, means the sum of two deltas, with the head of the first.
"""

from __future__ import annotations

import dataclasses
import difflib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsehub.delta.algebra import weighted_sum
from sparsehub.errors import BackboneMismatchError, UnknownTaskError, UsageError
from sparsehub.files import canonical_json, sha256_bytes
from sparsehub.package import Manifest, Package, TaskSpec
from sparsehub.task_ref import Reference, TaskRef, Term, model_of

MOST_NAMES = 2_000  # an error suggests no name among more than these: the search would take longer than an answer


@dataclass(frozen=True)
class Task:
    """A task that is served, whether its package was read yet or not; `TaskRegistry` keeps it.

    Everything that is cached about a task is keyed by its digest, never by its name.
    """

    name: str
    version: str
    digest: str  # of its package
    load: Callable[[], Package]  # reads and validates its package; called whenever the task is not in memory
    composed: bool = False  # whether a request composed it of other tasks; few of those are kept in memory

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a task once its package was read; it is kept when the task is evicted."""

    name: str
    version: str
    digest: str  # of its package
    spec: TaskSpec
    nnz: int  # changed entries
    shares: bool = False  # whether its rows share layers with rows of the same text for other such tasks

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


def info_of(manifest: Manifest, digest: str, shares: bool = False) -> TaskInfo:
    """The info of a package. digest: of its manifest; shares: `TaskInfo.shares`."""
    return TaskInfo(manifest.name, manifest.version, digest, manifest.task, manifest.nnz, shares)


class TaskRegistry:
    """Keeps and finds the tasks of an `Engine`. Thread-safe. A bare name means the task added last under it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, dict[str, Task]] = {}  # name -> digest -> task, in the order of adding

    def add(self, task: Task, *, replace: bool = False, beside: bool = False) -> list[Task]:
        """Add a task; returns those that it replaces.

        Raises `UsageError` where its name and version already mean another digest, unless the new task may take its
        place (`replace`) or both may be served, each by its digest (`beside`).
        """
        with self._lock:
            family = self._by_name.setdefault(task.name, {})
            others = [t for t in family.values() if t.version == task.version and t.digest != task.digest]
            if others and not replace and not beside:
                raise UsageError(
                    f"{task.reference} is served already, with other contents",
                    found=task.digest,
                    expected=others[0].digest,
                    fix="remove the task first, or give the new one another version",
                )
            replaced = others if replace else []
            for other in replaced:
                del family[other.digest]
            family.pop(task.digest, None)
            family[task.digest] = task
            return replaced

    def remove(self, reference: str | TaskRef) -> Task:
        """Remove a task, and return it; its queued rows have references, and are still answered."""
        task = self.find(reference)
        with self._lock:
            family = self._by_name.get(task.name, {})
            family.pop(task.digest, None)
            if not family:
                self._by_name.pop(task.name, None)
        return task

    def find(self, reference: str | TaskRef) -> Task:
        """The task that a reference means; raises `UnknownTaskError`, which names the nearest one."""
        wanted = model_of(reference).task
        with self._lock:
            family = list(self._by_name.get(wanted.name, {}).values())
        for task in reversed(family):
            if wanted.matches(task.version, task.digest):
                return task
        raise self._unknown(str(wanted))

    def all(self) -> list[Task]:
        """Every task, in the order of their names' first addition."""
        with self._lock:
            return [task for family in self._by_name.values() for task in family.values()]

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._by_name.values()))

    def _unknown(self, reference: str) -> UnknownTaskError:
        tasks, shown = self.all(), repr(reference[:200])
        if not tasks:
            return UnknownTaskError(f"no task {shown}: none is served")
        known = sorted({task.name for task in tasks} | {task.reference for task in tasks})
        near = difflib.get_close_matches(reference[:200], known, n=1) if len(known) <= MOST_NAMES else []
        hint = f"did you mean {near[0]!r}?" if near else f"{len(tasks)} tasks are served, {known[0]!r} for example"
        return UnknownTaskError(f"unknown task {shown}, {hint}")


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
