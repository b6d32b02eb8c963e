"""`--layers`: what it names, found in backbones of every family by what their modules run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsehub.backbone import Backbone, load_backbone
from sparsehub.backbone.arena import build_arena
from sparsehub.backbone.layers import LayerList, changed_layers, layer_list, layers_named
from sparsehub.errors import UsageError
from sparsehub.selection.depth import depth
from sparsehub.selection.scope import in_depth

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2")
SIX = LayerList("layer.", 6, frozenset({"norm.weight"}))
EVERY = ["embedding.weight", *(f"layer.{n}.weight" for n in range(6)), "norm.weight"]
PARAMETERS: dict[str, Tensor] = {name: torch.zeros(1) for name in EVERY}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("all", EVERY),
        ("last:2", EVERY[5:]),
        ("last:6", EVERY[1:]),
        ("first:2", EVERY[:3]),
        ("2-3", EVERY[3:5]),
        ("5-5", EVERY[6:7]),
    ],
)
def test_layers_are_named_from_an_end_or_by_number(text: str, left: list[str]) -> None:
    assert list(in_depth(PARAMETERS, depth(text), SIX)) == left


@pytest.mark.parametrize("text", ["", "last", "last:0", "last:-1", "lost:2", "3-2", "1-", "2", " 1-2", "last:2,0-1"])
def test_what_names_no_layers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"last:2, first:2, 3-5, all, auto or auto:0\.02"):
        depth(text)


@pytest.mark.parametrize("text", ["last:7", "first:7", "2-6", "6-6"])
def test_more_layers_than_there_are_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"more than this backbone has.*6 layers"):
        in_depth(PARAMETERS, depth(text), SIX)
    with pytest.raises(UsageError, match="0 layers"):
        in_depth(PARAMETERS, depth(text), LayerList("", 0, frozenset()))


def test_a_depth_in_which_the_patterns_left_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no parameter is left.*last:1 of 6"):
        in_depth({"embedding.weight": torch.zeros(1)}, depth("last:1"), SIX)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_every_family_are_found(tiny_checkpoint: Callable[[str], Path], family: str) -> None:
    backbone = load_backbone(tiny_checkpoint(family))
    found = layer_list(backbone)
    places = {name: found.place(name) for name in backbone.arena.slots}
    assert found.count == backbone.config.num_hidden_layers
    assert set(places.values()) >= set(range(-1, found.count))
    for name, place in places.items():
        assert (0 <= place < found.count) == (f".{place}." in f".{name}")
    # reference: what a change reaches. Of what stands after layer k, no change moves that layer's output.
    assert {name for name, place in places.items() if place == found.count} == _reaches_no_layer(backbone.module, found)


def _reaches_no_layer(module: nn.Module, layers: LayerList) -> set[str]:
    """Parameters on which the last layer's output does not depend, by its gradient."""
    states: list[Tensor] = []
    last = module.get_submodule(f"{layers.prefix}{layers.count - 1}")
    hook = last.register_forward_hook(lambda _, __, out: states.append(out if isinstance(out, Tensor) else out[0]))
    parameters = dict(module.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    # words that differ: the gradient of equal ones can be zero
    module(input_ids=torch.tensor([[5, 7, 6, 9]]))
    found = torch.autograd.grad(states[0].square().sum(), list(parameters.values()), allow_unused=True)
    hook.remove()
    return {name for name, gradient in zip(parameters, found, strict=True) if gradient is None}


def test_a_layer_that_runs_many_times_is_one_layer_and_what_no_module_reads_counts_as_before() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.groups = nn.ModuleList([nn.Linear(2, 2)])
            self.unseen = nn.Linear(2, 2)
            self.norm = nn.LayerNorm(2)

        def forward(self, input_ids: Tensor) -> Tensor:
            state = input_ids.float()
            for _ in range(3):
                state = self.groups[0](state)
            return self.norm(state) + self.unseen.bias

    found = layer_list(_backbone_of(Shared()))
    assert (found.prefix, found.count, found.after) == ("groups.", 1, {"norm.weight", "norm.bias"})
    assert found.place("unseen.bias") == -1


def _backbone_of(module: nn.Module) -> Backbone:
    return Backbone(module, build_arena(dict(module.named_parameters())), None, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("touched", "first"),
    [(["norm.weight"], 6), (["layer.4.weight", "norm.weight"], 4), (["layer.4.weight", "embedding.weight"], -1)],
)
def test_a_manifest_names_the_first_place_that_changes(touched: list[str], first: int) -> None:
    assert changed_layers(touched, SIX) == (first, 6)
    assert changed_layers(touched, layers_named(EVERY)) == (first, 6)


def test_names_alone_tell_the_longest_numbered_list() -> None:
    names = ["convolutions.0.weight", *(f"encoder.layer.{n}.mlp.1.weight" for n in range(3)), "pooler.dense.weight"]
    found = layers_named(names)
    assert [found.place(name) for name in names] == [-1, 0, 1, 2, 3]
