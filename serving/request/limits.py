"""How much a request may ask for: by the endpoint's settings, the key's rates and the task's quotas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.catalog.router import Routed
from serving.request.context import RequestContext
from serving.settings import Settings
from sparsehub.errors import RequestError

CHARACTERS_CHARGED = 8  # as one token at least, whatever becomes of them: cut off, or white space


def check_items(settings: Settings, items: int) -> None:
    """Raises `RequestError` for more items than one request may have."""
    if items > settings.max_items:
        limit = f"at most {settings.max_items}"
        raise RequestError("too many inputs in one request", found=items, expected=limit, fix="send fewer")


def check_fan_out(settings: Settings, tasks: int, items: int) -> None:
    """`check_items` for all rows of several tasks, before anything is done for one of them. items: of each."""
    if items == 0:
        raise RequestError("the input is empty", expected="at least one item")
    if tasks * items > settings.max_items:
        found, limit = f"{items} for each of {tasks} tasks", f"at most {settings.max_items} in all"
        raise RequestError("too many inputs in one request", found=found, expected=limit, fix="send fewer")


def take_items(routed: Routed, items: int) -> None:
    """Charge the quotas of items of the tasks; raises `RateLimitError`."""
    for route in routed.routes:
        if route.items is not None:
            route.items.take(items, f"the quota of items of the task {route.name}")


def check_size(settings: Settings, inputs: Sequence[Any]) -> int:
    """The tokens that inputs are charged at least, by what was sent of them; nothing is tokenised for it.

    Raises `RequestError` for more than one request may have.
    """
    least = sum(map(_characters, inputs)) // CHARACTERS_CHARGED
    _check_tokens(settings, least)
    return least


def take_tokens(settings: Settings, call: RequestContext, routed: Routed, tokens: int) -> None:
    """Charge the key's rate and the tasks' quotas of tokens; raises `RateLimitError`.

    Raises `RequestError`, and charges nothing, for more tokens than one request may have.
    """
    take_key_tokens(settings, call, tokens)
    take_quota(routed, tokens)


def take_key_tokens(settings: Settings, call: RequestContext, tokens: int) -> None:
    """Charge the key's rate of tokens; raises as `take_tokens` does."""
    _check_tokens(settings, tokens)
    if call.caller.tokens is not None:
        call.caller.tokens.take(tokens, f"the rate of tokens of the key {call.caller.name}")


def take_quota(routed: Routed, tokens: int) -> None:
    """Charge the tasks' quotas of tokens; raises `RateLimitError`."""
    for route in routed.routes:
        if route.tokens is not None:
            route.tokens.take(tokens, f"the quota of tokens of the task {route.name}")


def _check_tokens(settings: Settings, tokens: int) -> None:
    if tokens > settings.max_tokens:
        limit = f"at most {settings.max_tokens}"
        raise RequestError("too many tokens in one request", found=tokens, expected=limit, fix="send fewer inputs")


def _characters(item: Any) -> int:
    """Of all texts of an input; a token's id counts as those of a token."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, Mapping):
        return sum(map(_characters, item.values()))
    return sum(map(_characters, item)) if isinstance(item, Sequence) else CHARACTERS_CHARGED
