"""The check of the name by which a client calls the endpoint; the middleware asks it before anything else.

A page of any site can have its own name point at this machine (DNS rebinding), and is then, for a browser, of one
origin with the endpoint. The name in `Host` is the one thing that it cannot forge.
"""

from __future__ import annotations

from serving.auth.authenticator import is_here
from serving.settings import Settings
from sparsehub.errors import ForbiddenError
from sparsehub.settings import shown


def check_host(settings: Settings, header: bytes | None) -> None:
    """Raises `ForbiddenError` for a name by which the endpoint is not called. An endpoint with keys, or one that is
    open to everybody, has any name unless the settings say which. A client that sends no name is no browser."""
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
