"""Names of stored tensors without what torch.compile, FSDP, activation checkpointing and DDP put into them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from sparsehub.errors import FormatError

T = TypeVar("T")
# Components of a dotted name that only a wrapper adds, wherever they stand.
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
PARALLEL = "module"  # of DDP and DataParallel: a model may have a module of that name itself


def unwrapped(tensors: Mapping[str, T], what: str, known: Collection[str] = ()) -> tuple[dict[str, T], tuple[str, ...]]:
    """The same tensors by the names that the model itself gives them, and which wrappers were seen through.

    known: names of the model; where one has a component `module` of its own, that component is kept everywhere.
    Raises `FormatError` where two tensors would have one name.
    """
    dropped = set(WRAPPERS)
    if not any(PARALLEL in name.split(".") for name in known):
        dropped.add(PARALLEL)
    found: dict[str, T] = {}
    seen: set[str] = set()
    for name, tensor in tensors.items():
        parts = name.split(".")
        seen |= dropped.intersection(parts)
        plain = ".".join(part for part in parts if part not in dropped)
        if plain in found:
            raise FormatError(f"{what} holds {plain!r} twice, with and without a wrapper's name", found=name)
        found[plain] = tensor
    return found, tuple(sorted(seen))


def wrapper_note(seen: Collection[str]) -> tuple[str, ...]:
    """What a report says of wrappers that were seen through."""
    names = {**WRAPPERS, PARALLEL: "DDP"}
    return tuple(f"names with {part}. in them, of {names[part]}, were read without it" for part in seen)
