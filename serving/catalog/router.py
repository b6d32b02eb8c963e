"""Routing: which package answers a request, by the catalogue, the canary's share and the caller."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.auth.rate_limit import TokenBucket
from serving.catalog.catalog import CatalogEntry, CatalogTarget
from sparsehub.errors import UnknownTaskError
from sparsehub.task_ref import ModelRef, TaskRef, Term, compose


@dataclass(frozen=True)
class Route:
    """A catalogue entry with what is left of its quotas."""

    name: str
    entry: CatalogEntry
    items: TokenBucket | None
    tokens: TokenBucket | None


@dataclass(frozen=True)
class Routed:
    """What a request's `model` means for all of that request."""

    model: ModelRef | None  # what the engine is asked for, by digests; None for the plain backbone
    digests: tuple[str, ...] = ()  # that are held until `release`
    routes: tuple[Route, ...] = ()


class Router:
    """Decides which version of a task answers a request; `Service` asks it, the reconciler updates it. Thread-safe.

    Without a catalogue every reference goes to the engine as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._routes: Mapping[str, Route] | None = None
        self._held: Counter[str] = Counter()

    def use(self, entries: Mapping[str, CatalogEntry]) -> None:
        """Route by these entries from now on. A quota that stays what it was keeps what is left of it."""
        before = self._routes or {}
        routes = {name: _route(name, entry, before.get(name)) for name, entry in entries.items()}
        with self._lock:
            self._routes = routes

    def hold(self, model: ModelRef, caller: str) -> Routed:
        """What `model` means for a caller now; its packages stay until `release`. Raises `UnknownTaskError`.

        caller: the same caller gets the same version, as long as the canary and its share are what they are.
        """
        with self._lock:
            routes = self._routes
            if routes is None:
                return Routed(model)
            routed = _routed(routes, model, caller)
            self._held.update(routed.digests)
            return routed

    def knows(self, model: ModelRef) -> bool:
        """Whether `hold` would find what it means."""
        routes = self._routes
        if routes is None or _one(routes, model.task, "") is not None:
            return True
        return bool(model.terms) and all(_one(routes, term.task, "") is not None for term in model.terms)

    def release(self, routed: Routed) -> None:
        """Let the packages of a finished request go."""
        with self._lock:
            self._held.subtract(routed.digests)
            self._held = +self._held

    def serves(self, name: str, digest: str) -> bool:
        """Whether new requests may still get this package."""
        routes = self._routes
        if routes is None:
            return True
        return name in routes and any(target.digest == digest for target in routes[name].entry.targets)

    @property
    def names(self) -> list[str] | None:
        """Of all tasks that the catalogue has; None without one."""
        routes = self._routes
        return None if routes is None else list(routes)

    def role(self, name: str, digest: str) -> str | None:
        """`stable`, `canary` or `draining`; None without a catalogue."""
        routes = self._routes
        if routes is None:
            return None
        entry = routes[name].entry if name in routes else None
        roles = {} if entry is None else {target.digest: "canary" for target in entry.targets}
        if entry is not None:
            roles[entry.stable.digest] = "stable"
        return roles.get(digest, "draining")

    def is_held(self, digest: str) -> bool:
        """Whether a request that has begun needs this package."""
        with self._lock:
            return self._held[digest] > 0


def share_of(name: str, digest: str, caller: str) -> float:
    """Where a caller stands between 0 and 100 for one canary: always the same place, another for the next canary."""
    place = hashlib.sha256(f"{name}\0{digest}\0{caller}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(place[:8], "big") / (1 << 64) * 100


def _routed(routes: Mapping[str, Route], model: ModelRef, caller: str) -> Routed:
    found = _one(routes, model.task, caller)
    if found is not None:
        target, route = found
        return Routed(ModelRef(TaskRef(route.name, digest=target.digest)), (target.digest,), (route,))
    if not model.terms:
        raise _unknown(routes, str(model))
    return _composed(routes, model.terms, caller)


def _composed(routes: Mapping[str, Route], asked: Sequence[Term], caller: str) -> Routed:
    """Every term by its digest, with the weight as it was written."""
    terms, targets, used = [], [], []
    for term in asked:
        found = _one(routes, term.task, caller)
        if found is None:
            raise _unknown(routes, str(term.task))
        target, route = found
        terms.append(dataclasses.replace(term, task=TaskRef(route.name, digest=target.digest)))
        targets.append(target.digest)
        used.append(route)
    return Routed(compose(terms), tuple(targets), tuple(used))


def _one(routes: Mapping[str, Route], asked: TaskRef, caller: str) -> tuple[CatalogTarget, Route] | None:
    route = routes.get(asked.name)
    if route is None:
        return None
    entry = route.entry
    if asked.pin:
        named = [target for target in entry.targets if asked.matches(target.version, target.digest)]
        return (named[0], route) if named else None
    if entry.canary is not None and share_of(route.name, entry.canary.digest, caller) < entry.canary_percent:
        return entry.canary, route
    return entry.stable, route


def _route(name: str, entry: CatalogEntry, before: Route | None) -> Route:
    items = _bucket(entry.items_per_second, before.items if before else None)
    return Route(name, entry, items, _bucket(entry.tokens_per_second, before.tokens if before else None))


def _bucket(rate: float | None, before: TokenBucket | None) -> TokenBucket | None:
    if rate is None or (before is not None and before.rate == rate):
        return before if rate is not None else None
    return TokenBucket(rate)


def _unknown(routes: Mapping[str, Route], reference: str) -> UnknownTaskError:
    known: Sequence[str] = [*routes, *(f"{n}@{t.version}" for n, route in routes.items() for t in route.entry.targets)]
    near = difflib.get_close_matches(reference[:200], known[:4000], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the catalogue has {len(routes)} tasks"
    return UnknownTaskError(f"unknown task {reference[:200]!r}, {hint}")
