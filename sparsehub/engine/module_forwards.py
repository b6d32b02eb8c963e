"""Forwards of our own on a backbone's modules for the time of one pass; mixed batches and graphs put theirs on so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def with_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside, these modules have these forwards; before and after it nothing is on the model."""
    try:
        for module, forward in forwards.items():
            # Past nn.Module's own attribute setting, which would look for parameters and hooks first.
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
