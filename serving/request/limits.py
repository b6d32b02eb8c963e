"""How much a request may ask for: by the endpoint's settings, the key's rates and the task's quotas."""

from __future__ import annotations

from serving.catalog.router import Routed
from serving.request.context import RequestContext
from serving.settings import Settings
from sparsehub.errors import RequestError


def check_items(settings: Settings, items: int) -> None:
    """Raises `RequestError` for more items than one request may have."""
    if items > settings.max_items:
        limit = f"at most {settings.max_items}"
        raise RequestError("too many inputs in one request", found=items, expected=limit, fix="send fewer")


def take_items(routed: Routed, items: int) -> None:
    """Charge the quotas of items of the tasks; raises `RateLimitError`."""
    for route in routed.routes:
        if route.items is not None:
            route.items.take(items, f"the quota of items of the task {route.name}")


def take_tokens(settings: Settings, call: RequestContext, routed: Routed, tokens: int) -> None:
    """Charge the key's rate and the tasks' quotas of tokens; raises `RateLimitError`.

    Raises `RequestError`, and charges nothing, for more tokens than one request may have.
    """
    if tokens > settings.max_tokens:
        limit = f"at most {settings.max_tokens}"
        raise RequestError("too many tokens in one request", found=tokens, expected=limit, fix="send fewer inputs")
    if call.caller.tokens is not None:
        call.caller.tokens.take(tokens, f"the rate of tokens of the key {call.caller.name}")
    for route in routed.routes:
        if route.tokens is not None:
            route.tokens.take(tokens, f"the quota of tokens of the task {route.name}")
