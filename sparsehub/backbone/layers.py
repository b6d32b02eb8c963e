"""Where a backbone's parameters stand in its depth: before its layers, in one of them, or after them.

Training asks this for `--layers`, and for what a manifest says of a delta's depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from sparsehub.backbone.backbone import Backbone

BEFORE = -1
# How the parameters of a checkpoint begin that are read after the layers, where nothing but names is known.
_AFTER = ("pooler.", "norm.", "final_norm.", "ln_f.", "lm_head.", "embed_out.")


@dataclass(frozen=True)
class LayerList:
    """The layers of one backbone, in the order in which they run."""

    prefix: str  # of their parameters' names: `encoder.layer.`
    count: int
    after: frozenset[str]  # parameters that only modules read which run once the layers are done

    def place(self, name: str) -> int:
        """A parameter's layer, from 0; -1 before the layers, their number after them. What no module was seen to read
        counts as before."""
        if name in self.after:
            return self.count
        number = name.removeprefix(self.prefix).partition(".")[0]
        return int(number) if name.startswith(self.prefix) and number.isdecimal() else BEFORE


def changed_layers(touched: Iterable[str], layers: LayerList) -> tuple[int, int]:
    """What a manifest says of a delta: the first place that changes (-1: before the layers; their number: only what
    comes after them), and how many layers there are."""
    return min((layers.place(name) for name in touched), default=layers.count), layers.count


def layers_named(names: Iterable[str]) -> LayerList:
    """The layers of a checkpoint of which only the parameters' names are known: the longest numbered list of them."""
    names = list(names)
    lists: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if place is not None:
            lists.setdefault("".join(f"{part}." for part in parts[:place]), set()).add(int(parts[place]))
    prefix = max(lists, key=lambda found: len(lists[found]), default="")
    count = 1 + max(lists.get(prefix, {-1}))
    return LayerList(prefix, count, frozenset(name for name in names if name.startswith(_AFTER)))


def layer_list(backbone: Backbone) -> LayerList:
    """The layers of a backbone: of its module lists that lie in no other one, that with the most entries.

    One pass over two tokens shows what runs after them.
    """
    found = list(_outermost(backbone.module, ""))
    if not found:
        return LayerList("", 0, frozenset())
    prefix, layers = max(found, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))
    read_before = _read_before_the_end(backbone.module, layers[-1])
    after = {name for name, parameter in backbone.parameters.items() if id(parameter) not in read_before}
    return LayerList(f"{prefix}.", len(layers), frozenset(after))


def _outermost(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.ModuleList) and len(child):
            yield path, child
        else:
            yield from _outermost(child, path)


@torch.no_grad()
def _read_before_the_end(module: nn.Module, last: nn.Module) -> set[int]:
    """By id, the parameters of modules that run before the last layer is done, or that do not run at all."""
    began: dict[nn.Module, int] = {}
    ended = clock = 0

    def begin(running: nn.Module, _: object) -> None:
        nonlocal clock
        clock += 1
        began.setdefault(running, clock)

    def end(*_: object) -> None:
        nonlocal ended
        ended = clock

    hooks = [child.register_forward_pre_hook(begin) for child in module.modules()]
    hooks.append(last.register_forward_hook(end))
    try:
        module(input_ids=torch.zeros((1, 2), dtype=torch.long, device=next(module.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    early = [child for child in module.modules() if began.get(child, 0) <= ended]
    return {id(parameter) for child in early for parameter in child.parameters(recurse=False)}
