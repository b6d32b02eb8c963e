"""The tasks an engine serves, found by reference: `name`, `name@version`, `name@sha256:...`."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from sparsehub.errors import UnknownTaskError, UsageError
from sparsehub.package import Manifest
from sparsehub.package.model import HeadModel
from sparsehub.patch import Patch
from sparsehub.schema import unknown_name


@dataclass(frozen=True)
class LoadedTask:
    """A task ready to run. Everything cached about it is keyed by `digest`, never by its name."""

    manifest: Manifest
    digest: str
    patch: Patch
    head: HeadModel

    @property
    def nbytes(self) -> int:
        """Memory that the task holds: patch and head."""
        return self.patch.nbytes + self.head.nbytes


class TaskTable:
    """Thread-safe. The newest task under a name is what the bare name means."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, LoadedTask] = {}  # by digest, in the order of adding

    def add(self, task: LoadedTask) -> None:
        """Serve a task. Raises `UsageError` where its name and version already mean another digest."""
        with self._lock:
            for other in self._tasks.values():
                same = (other.manifest.name, other.manifest.version) == (task.manifest.name, task.manifest.version)
                if same and other.digest != task.digest:
                    raise UsageError(
                        f"{task.manifest.name}@{task.manifest.version} is served already, with other contents",
                        found=task.digest,
                        expected=other.digest,
                        fix="remove the task first, or give the new one another version",
                    )
            self._tasks.pop(task.digest, None)
            self._tasks[task.digest] = task

    def remove(self, reference: str) -> LoadedTask:
        """Serve a task no longer; rows that are queued keep what they hold and are still answered."""
        task = self.find(reference)
        with self._lock:
            self._tasks.pop(task.digest, None)
        return task

    def find(self, reference: str) -> LoadedTask:
        """The task that a reference means; raises `UnknownTaskError`, which names the nearest one."""
        name, _, wanted = reference.partition("@")
        for task in reversed(self.all()):
            if task.manifest.name == name and wanted in ("", task.manifest.version, task.digest):
                return task
        known = sorted({task.manifest.name for task in self.all()} | {reference_of(task) for task in self.all()})
        raise UnknownTaskError(
            unknown_name("task", reference, known) if known else f"no task {reference!r}: none is served"
        )

    def all(self) -> list[LoadedTask]:
        with self._lock:
            return list(self._tasks.values())


def reference_of(task: LoadedTask) -> str:
    """`name@version`."""
    return f"{task.manifest.name}@{task.manifest.version}"
