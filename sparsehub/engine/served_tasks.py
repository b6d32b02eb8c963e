"""The tasks of an engine: added, registered, loaded, removed, and where each of them is."""

from __future__ import annotations

from sparsehub.engine.residency import Residency
from sparsehub.engine.stats import TaskStatus
from sparsehub.engine.task_handle import LOAD_SECONDS, Usage
from sparsehub.engine.task_loader import TaskLoader
from sparsehub.engine.task_registry import Task, TaskInfo, TaskRegistry, find_task
from sparsehub.errors import UsageError
from sparsehub.package import Package
from sparsehub.task_ref import Reference, TaskRef


class ServedTasks:
    """Base of `Engine`, which makes what it works with."""

    tasks: TaskRegistry
    _loader: TaskLoader
    _residency: Residency

    def add(self, package: Package) -> TaskInfo:
        """Serve a package that is in memory; it is never evicted. Raises `BackboneMismatchError` or `FormatError`, and
        changes nothing then."""
        manifest = package.manifest
        task = Task(manifest.name, manifest.version, package.digest, lambda: package)
        resident = self._residency.admit(task, self._loader.lay_out(package))
        try:
            self.tasks.add(task)
        except UsageError:
            self._residency.forget(task.digest)
            raise
        return resident.info

    def register(self, task: Task, *, replace: bool = False, beside: bool = False) -> None:
        """Serve a task that is read at its first request. replace: its version may mean other contents today, whose
        queued rows are still answered by them; beside: such contents are served on, by their digest."""
        for replaced in self.tasks.add(task, replace=replace, beside=beside):
            self._residency.forget(replaced.digest)

    def remove(self, reference: str | TaskRef) -> None:
        """Serve a task no longer; rows that are queued are still answered. Raises `UnknownTaskError`."""
        self._residency.forget(self.tasks.remove(reference).digest)

    def load(self, reference: Reference, *, pin: bool = False, timeout: float = LOAD_SECONDS) -> TaskInfo:
        """Have a task ready to run, and never evicted where `pin` says so; raises what its load raises."""
        return self._residency.load(find_task(self.tasks, reference), pin=pin, timeout=timeout)

    def unpin(self, reference: str | TaskRef) -> None:
        """Allow the eviction of a task that was pinned. Raises `UnknownTaskError`."""
        self._residency.unpin(self.tasks.find(reference).digest)

    def status(self) -> list[TaskStatus]:
        """Where every task is: on the device, in host memory, being loaded, or on disk."""
        return [self._residency.status(task) for task in self.tasks.all()]

    @property
    def usage(self) -> Usage:
        """Bytes and counts of the tasks in memory."""
        return self._residency.usage()

    def info(self, reference: Reference, timeout: float | None = None) -> TaskInfo:
        """What a task is; its package is read where that was not done before. Raises `UnknownTaskError`."""
        task = find_task(self.tasks, reference)
        return self._residency.info(task.digest) or self.load(reference, timeout=timeout or LOAD_SECONDS)
