"""Forwards of our own on a backbone's modules for the time of one pass; mixed batches, trunks and graphs put theirs on
so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn import functional
from transformers.activations import GELUActivation


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


def find_gelus(module: nn.Module) -> list[nn.Module]:
    """The modules of a model that compute the exact GELU and nothing else."""
    return [each for each in module.modules() if _is_gelu(each)]


def _is_gelu(module: nn.Module) -> bool:
    if type(module) is GELUActivation:
        return module.act is functional.gelu
    return type(module) is nn.GELU and module.approximate == "none"
