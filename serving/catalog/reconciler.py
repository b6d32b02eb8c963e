"""Makes an engine serve what a catalogue says: proves what is new, then moves the requests, then drains what is old."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from serving.catalog.catalog import Catalog, CatalogEntry, CatalogTarget, parse_catalog
from serving.catalog.router import Router
from serving.catalog.source import Source
from serving.catalog.storage import last_good_file
from serving.config_watch import Watcher
from sparsehub.engine import Engine, Task
from sparsehub.errors import SparsehubError, UsageError
from sparsehub.files import write_file
from sparsehub.hub.documents import Document
from sparsehub.task_ref import TaskRef

log = logging.getLogger("sparsehub")
RETRY_SECONDS = 15.0  # until what was refused is tried again: a hub may have been away
MOST_RETRY_SECONDS = 600.0  # that becomes of it, doubled each time, where the same entries stay refused


class Reconciler:
    """Keeps an engine and a router at what the catalogue says; one runs in every replica. Any thread may read `served`,
    the entries that requests are routed by, and `refused`, those that could not be applied and why: for them the
    entry before is served on.

    seconds: between two looks at the document.
    """

    def __init__(self, document: Document, engine: Engine, router: Router, source: Source, seconds: float = 2.0):
        self.document, self.source, self._engine, self._router = document, source, engine, router
        self.served: Mapping[str, CatalogEntry] = {}
        self.refused: Mapping[str, SparsehubError] = {}
        self.revision = 0
        self._lock = threading.RLock()
        self._wanted: Catalog | None = None
        self._known: dict[str, str] = {}  # digest -> name, of every task that is in the engine for the catalogue
        self._retry_at, self._retry_seconds = 0.0, RETRY_SECONDS
        self.follower = Watcher(document, self.apply, seconds, self.tidy)

    def start(self) -> None:
        """Take over the catalogue, and follow it. Where it cannot be read, what was served last is served again."""
        self._router.use({})
        try:
            self.follower.look()
        except SparsehubError:
            if (copy := self._last_good()) is None:
                raise
            log.error("serving the catalogue's last good state, revision %d", copy.revision)
            self._settle(copy)
        self.follower.start()

    def stop(self) -> None:
        self.follower.stop()

    def apply(self, data: bytes | None) -> None:
        """Take over a catalogue's content; raises `UsageError` for one that is damaged or gone, and changes nothing."""
        if data is None and self._wanted is not None:
            raise UsageError(f"the catalogue at {self.document.where} is gone", fix="put it back")
        catalog = Catalog() if data is None else parse_catalog(data)
        if catalog.revision < self.revision:  # somebody has put an old copy back, which may be meant
            log.warning("the catalogue went back from revision %d to %d", self.revision, catalog.revision)
        self._retry_seconds = RETRY_SECONDS
        self._settle(catalog)
        try:
            write_file(self._copy, catalog.to_bytes())
        except OSError as error:  # a full disk: what is served is right, only a restart would not know it
            log.error("the catalogue's last good state cannot be kept at %s: %s", self._copy, error)

    def reload(self) -> None:
        """Look at the catalogue now, and try again what was refused; raises what reading it does."""
        self._retry_at, self._retry_seconds = 0.0, RETRY_SECONDS
        self.follower.look()
        self.tidy()

    def prove(self, name: str, target: CatalogTarget) -> None:
        """Load a version that is to be in the catalogue, and keep it until the next look; raises what its load does."""
        with self._lock:
            if target.digest not in self._known:
                self._prove(name, CatalogEntry(target))

    def tidy(self) -> None:
        """Drop what no request needs any more, and try again what was refused."""
        with self._lock:
            if self.refused and self._wanted is not None and time.monotonic() >= self._retry_at:
                self._retry_seconds = min(2 * self._retry_seconds, MOST_RETRY_SECONDS)
                self._settle(self._wanted)
            for digest, name in list(self._known.items()):
                if not self._router.serves(name, digest) and not self._router.is_held(digest):
                    del self._known[digest]
                    self._engine.remove(TaskRef(name, digest=digest))
                    log.info("%s %s is served no longer", name, digest)

    @property
    def draining(self) -> int:
        """How many versions are kept only for requests that have begun."""
        return sum(not self._router.serves(name, digest) for digest, name in list(self._known.items()))

    def _settle(self, catalog: Catalog) -> None:
        """Prove every entry; route by those that are sound, and as before where one is not."""
        taken: dict[str, CatalogEntry] = {}
        refused: dict[str, SparsehubError] = {}
        with self._lock:
            for name, entry in catalog.tasks.items():
                try:
                    self._prove(name, entry)
                    taken[name] = entry
                except SparsehubError as error:
                    self._refuse(name, error)
                    refused[name] = error
                    if name in self.served:
                        taken[name] = self.served[name]
            self._router.use(taken)
            self.served, self.refused, self.revision, self._wanted = taken, refused, catalog.revision, catalog
            self._retry_at = time.monotonic() + self._retry_seconds
        log.info("catalogue revision %d: %d tasks, %d refused", catalog.revision, len(taken), len(refused))

    def _refuse(self, name: str, error: SparsehubError) -> None:
        if str(self.refused.get(name)) != str(error):  # not again at every try
            log.error("the catalogue's entry %s is refused: %s", name, error)

    def _prove(self, name: str, entry: CatalogEntry) -> None:
        """Have every version of an entry loaded once; raises what its load raises, and leaves nothing of it then."""
        for target in entry.targets:
            reference, new = TaskRef(name, digest=target.digest), target.digest not in self._known
            if new:
                self._engine.register(self._task(name, target), beside=True)
            elif not entry.pinned:
                self._engine.unpin(reference)
                continue
            try:
                self._engine.load(reference, pin=entry.pinned)
            except SparsehubError:
                if new:
                    self._engine.remove(reference)
                raise
            self._known[target.digest] = name

    def _task(self, name: str, target: CatalogTarget) -> Task:
        return Task(name, target.version, target.digest, lambda: self.source.load(TaskRef(name, digest=target.digest)))

    @property
    def _copy(self) -> Path:
        """The last good state of this catalogue, kept on this machine."""
        return last_good_file(self.document)

    def _last_good(self) -> Catalog | None:
        with suppress(OSError, UsageError):
            return parse_catalog(self._copy.read_bytes())
        return None
