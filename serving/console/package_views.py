"""What is inside the packages of served tasks: cards, heat maps, overlaps. Read when a user opens them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from serving.console.cards import card_html, picture_html
from serving.console.examples import TaskExample, examples_in
from sparsehub.engine import Engine
from sparsehub.errors import UnknownTaskError, UsageError
from sparsehub.extras import require
from sparsehub.package import Package
from sparsehub.package.card import DENSITY_PICTURE
from sparsehub.package.comparison import compare_packages
from sparsehub.package.plots import draw_density, draw_matrices
from sparsehub.package.summary import summarize

T = TypeVar("T")
KEPT = 64  # of what was read or drawn
MOST_COMPARED = 8


class Packages:
    """Pages about packages, by digest; the console's tabs show them. Thread-safe: one package is read at a time.

    The caller has checked that the digest is in the user's list of tasks.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def card(self, digest: str) -> str:
        """The card as harmless HTML, but for the picture that `heat_map` draws."""
        return self._made(("card", digest), lambda: card_html(self._read(digest).attachments, {DENSITY_PICTURE}))

    def heat_map(self, digest: str) -> str:
        """The share of changed entries by layer and kind of matrix, drawn from the manifest."""
        return self._made(("heat", digest), lambda: self._draw_heat(digest))

    def examples(self, digest: str) -> list[TaskExample]:
        """Texts to try the task with, as far as the package has some."""
        return self._made(("examples", digest), lambda: examples_in(self._read(digest).manifest))

    def overlap(self, digests: Sequence[str]) -> str:
        """Jaccard index and sign agreement of two or more tasks; raises `UsageError`."""
        if not 2 <= len(set(digests)) <= MOST_COMPARED:
            raise UsageError("choose other tasks", found=len(set(digests)), expected=f"2 to {MOST_COMPARED}")
        return self._made(("overlap", *digests), lambda: self._draw_overlap(digests))

    def _draw_heat(self, digest: str) -> str:
        require("matplotlib", "console")
        package = summarize(self._read(digest).manifest)
        if not package.changes.nnz:
            return "<p>Nothing of the backbone changes: the task is a head alone.</p>"
        return picture_html(draw_density(package), "Share of entries changed, by layer and kind of matrix")

    def _draw_overlap(self, digests: Sequence[str]) -> str:
        require("matplotlib", "console")
        found = compare_packages([self._read(digest) for digest in digests])
        return picture_html(draw_matrices(list(found.names), found.matrices), "Overlap and agreement of the tasks")

    def _read(self, digest: str) -> Package:
        for status in self._engine.status():
            if status.task.digest == digest:
                return status.task.load()
        raise UnknownTaskError("this task is served no longer")

    def _made(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            made: T = self._kept[key]
            return made
