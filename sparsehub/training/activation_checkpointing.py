"""Trading time for memory in a backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def checkpoint_activations(model: Any) -> bool:
    """Have a transformers model compute activations again in the backward pass; False where it cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        return False
    new = getattr(model, "activation_checkpointing_enable", None)  # the name from transformers 5.23 on
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return True


@contextlib.contextmanager
def checkpointed_activations(model: Any) -> Iterator[None]:
    """`checkpoint_activations` for a while."""
    enabled = checkpoint_activations(model)
    try:
        yield
    finally:
        if enabled:
            getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
