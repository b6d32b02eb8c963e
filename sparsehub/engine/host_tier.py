"""The host tier: tasks in host memory, kept for their next load within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict

from sparsehub.engine.resident import HostTask


class HostTier:
    """Keeps what `Residency` has read, least recently kept first out. Not thread-safe but for `sound`: the residency's
    lock is held around every other call."""

    def __init__(self, budget: int):
        self._budget = budget  # bytes
        self._tasks: OrderedDict[str, HostTask] = OrderedDict()  # by digest
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, digest: str) -> bool:
        return digest in self._tasks

    def sound(self, digest: str) -> HostTask | None:
        """A task whose every byte is still what was read; None of others, which are to be read again."""
        host = self._tasks.get(digest)
        return host if host is not None and host.digests.first_damaged() is None else None

    def keep(self, host: HostTask) -> None:
        """Keep a task, within the budget; not one that is larger than all of it."""
        if host.nbytes > self._budget:
            return
        self.forget(host.info.digest)
        self.nbytes += host.nbytes
        self._tasks[host.info.digest] = host
        while self.nbytes > self._budget:
            _, dropped = self._tasks.popitem(last=False)
            self.nbytes -= dropped.nbytes

    def forget(self, digest: str) -> None:
        """Drop a task where it is kept."""
        host = self._tasks.pop(digest, None)
        self.nbytes -= host.nbytes if host is not None else 0
