"""Authentication: the caller of a request by its key, the role that each path needs, and the endpoint's own names."""

from __future__ import annotations

import base64
import ipaddress
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.cookies import CookieError, SimpleCookie

from serving.auth.keys import ADMIN, PREDICT, ROLES, WATCH, Key, KeyRing, parse_keys
from serving.auth.rate_limit import TokenBucket
from serving.settings import Settings
from sparsehub.errors import ForbiddenError, UnauthenticatedError, UsageError
from sparsehub.settings import shown

log = logging.getLogger("sparsehub")
HOME = "/"  # says where things are
CONSOLE = "/console"
SIGN_IN, SIGN_OUT = f"{CONSOLE}/sign-in", f"{CONSOLE}/sign-out"
COOKIE = "sparsehub_console"  # holds the key that a browser signed in with
PUBLIC = frozenset({HOME, "/healthz", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready", SIGN_IN, SIGN_OUT})
ADMIN_ROUTES = "/v1/admin"
_LOOKING = frozenset({"/v1/models", "/v1/tasks", "/openapi.json", "/v2"})


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what they may ask for."""

    name: str  # of the key
    may: frozenset[str]  # what its role allows
    tasks: tuple[str, ...] = ("*",)
    requests: TokenBucket | None = None  # what is left of its rate
    tokens: TokenBucket | None = None
    weight: float = 1.0  # of its share of a busy machine

    @property
    def sees_all(self) -> bool:
        """Whether every task is the caller's."""
        return "*" in self.tasks

    def may_ask(self, task: str) -> bool:
        """Whether the caller may ask the task of this name (no version)."""
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)

    def check_tasks(self, tasks: Iterable[str]) -> None:
        """`check_task` for a list, which is refused whole; which of them is another's is not said."""
        if not all(map(self.may_ask, tasks)):
            problem = f"the key {self.name} is not for every task of the list"
            raise ForbiddenError(problem, fix="leave out those that are not its own, or ask with another key")

    def check_task(self, task: str) -> None:
        """Raises `ForbiddenError`, whether there is such a task or not: a caller learns nothing of others' tasks."""
        if not self.may_ask(task):
            raise ForbiddenError(f"the key {self.name} is not for the task {task[:100]!r}", fix="ask with another key")


ANONYMOUS = Caller("anonymous", ROLES[PREDICT] | ROLES[WATCH])
"""The caller of an endpoint without keys; what is served cannot be changed without one."""


def is_console(path: str) -> bool:
    """Whether a path belongs to the page for browsers."""
    return path == CONSOLE or path.startswith(f"{CONSOLE}/")


def needed_for(path: str) -> frozenset[str] | None:
    """The roles of which a caller of this path needs one; None for a public path. Most paths need a predict key."""
    if path in PUBLIC:
        return None
    if path == ADMIN_ROUTES or path.startswith(f"{ADMIN_ROUTES}/"):
        return frozenset({ADMIN})
    if path == "/metrics":
        return frozenset({WATCH})
    looking = path in _LOOKING or path.startswith("/v1/models/") or is_console(path)
    return frozenset({PREDICT, WATCH}) if looking else frozenset({PREDICT})


class Authenticator:
    """Finds the caller of a request by its key; the middleware and the console's sign-in ask it.

    ring: None for an endpoint without keys, which answers its own machine only, unless `everybody` is set.
    """

    def __init__(self, ring: KeyRing | None = None, everybody: bool = False):
        self._everybody = everybody
        self._known = None if ring is None else (ring, _callers(ring, {}))

    def reload(self, data: bytes | None) -> None:
        """Take over a key file's content; raises `UsageError` and changes nothing where it cannot be one."""
        if data is None:
            raise UsageError("the key file is gone", fix="put it back; until then the keys that were read last hold")
        ring = parse_keys(data)
        self._known = (ring, _callers(ring, self._known[1] if self._known else {}))
        log.info("%d keys", len(ring.keys))

    def identify(self, authorization: str | None, client: str | None, server: str | None) -> Caller:
        """The caller; raises `UnauthenticatedError`.

        authorization: the header; client, server: the addresses of the connection's two ends, None for a local socket.
        """
        if self._known is None:
            if self._everybody or (is_here(client) and is_here(server)):
                return ANONYMOUS
            raise UnauthenticatedError(
                "this endpoint has no keys, so it answers its own machine only",
                fix="start it with keys: sparsehub serve --keys FILE",
            )
        ring, callers = self._known
        scheme, _, secret = (authorization or "").partition(" ")
        key = ring.find(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            found = "no key" if not authorization else "a key that is not known here"
            raise UnauthenticatedError(
                "a key is needed", found=found, fix="send the header Authorization: Bearer <key>"
            )
        return callers[key]


def authorization(path: str, headers: Mapping[bytes, bytes]) -> str | None:
    """What a request gives as its key: its header; in the console, and only there, also the cookie of the sign-in."""
    given = headers.get(b"authorization")
    if given is not None:
        return given.decode("latin-1")
    return cookie_key(headers) if is_console(path) else None


def cookie_key(headers: Mapping[bytes, bytes]) -> str | None:
    """The key in the cookie of a browser that signed in, as the header would say it."""
    try:
        found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE)
        key = None if found is None else base64.urlsafe_b64decode(found.value.encode()).decode()
    except (CookieError, ValueError):
        return None
    return f"Bearer {key}" if key else None


def check_role(caller: Caller, path: str) -> None:
    """Raises `ForbiddenError` unless the caller's role reaches this path."""
    needed = needed_for(path)
    if needed is not None and not needed & caller.may:
        roles = " or ".join(sorted(needed))
        raise ForbiddenError(f"{caller.name} may not do that", expected=f"a key of the role {roles}")


def _callers(ring: KeyRing, known: Mapping[Key, Caller]) -> dict[Key, Caller]:
    """A key that did not change keeps what is left of its rates."""
    return {key: known.get(key) or _caller(key) for key in ring.keys}


def _caller(key: Key) -> Caller:
    requests, tokens = key.requests_per_second, key.tokens_per_second
    return Caller(
        key.name,
        ROLES[key.role],
        key.tasks,
        TokenBucket(requests) if requests else None,
        TokenBucket(tokens) if tokens else None,
        key.weight,
    )


def is_here(address: str | None) -> bool:
    """Whether an address is this machine's own."""
    if address is None:
        return True
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def check_host(settings: Settings, header: bytes | None) -> None:
    """Raises `ForbiddenError` for a name by which the endpoint is not called. An endpoint with keys, or one that is
    open to everybody, has any name unless the settings say which. A client that sends no name is no browser.

    A page of any site can have its own name point at this machine (DNS rebinding), and is then, for a browser, of one
    origin with the endpoint. The name in `Host` is the one thing that it cannot forge.
    """
    if header is None or (not settings.host_names and (settings.keys is not None or settings.open)):
        return
    name = name_of(header.decode("latin-1"))
    if name == "localhost" or is_here(name) or name in map(str.lower, settings.host_names):
        return
    raise ForbiddenError(
        "this endpoint does not answer by this name",
        found=f"Host: {name[:200]}",
        expected=", ".join(("localhost", *settings.host_names)),
        fix=f"give the name to {shown('host_names')} where it is this endpoint's",
    )


def name_of(host: str) -> str:
    """The name in a `Host` header, without its port, as names are compared: in lower case, and without a last dot."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")
