from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.selection import LayerSelection, by_layer, in_scope
from sparsehub.selection.layer_report import layer_of

PARAMETERS: dict[str, Tensor] = {
    name: torch.zeros(2)
    for name in ("embeddings.word.weight", "layer.0.query.weight", "layer.0.query.bias", "layer.1.query.weight")
}


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ((), (), list(PARAMETERS)),
        (("layer.*",), (), ["layer.0.query.weight", "layer.0.query.bias", "layer.1.query.weight"]),
        ((), ("*.bias", "embeddings.*"), ["layer.0.query.weight", "layer.1.query.weight"]),
        (("layer.0.*", "embeddings.*"), ("*.bias",), ["embeddings.word.weight", "layer.0.query.weight"]),
    ],
)
def test_patterns_say_what_competes(include: tuple[str, ...], exclude: tuple[str, ...], left: list[str]) -> None:
    assert list(in_scope(PARAMETERS, include, exclude)) == left


@pytest.mark.parametrize(("include", "exclude"), [(("layers.*",), ()), ((), ("*.biases",))])
def test_a_pattern_that_matches_nothing_is_a_misspelling(include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"matches no parameter.*embeddings\.word\.weight"):
        in_scope(PARAMETERS, include, exclude)


def test_an_empty_scope_is_refused() -> None:
    with pytest.raises(UsageError, match="no parameter is left"):
        in_scope(PARAMETERS, ("layer.*",), ("layer.*",))


def test_a_report_has_a_line_for_each_layer_and_counts_what_was_chosen() -> None:
    mask = {"layer.0.query.weight": torch.tensor([1]), "layer.1.query.weight": torch.tensor([0, 1])}
    lines = by_layer(mask, {name: tensor.shape for name, tensor in PARAMETERS.items()})
    assert lines == [
        LayerSelection("embeddings", 2, 0),
        LayerSelection("layer.0", 4, 1),
        LayerSelection("layer.1", 2, 2),
    ]
    assert [line.density for line in lines] == [0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("name", "layer"),
    [("encoder.layer.3.output.dense.weight", "encoder.layer.3"), ("pooler.dense.bias", "pooler"), ("h.0.w", "h.0")],
)
def test_a_layer_is_what_comes_before_and_with_its_number(name: str, layer: str) -> None:
    assert layer_of(name) == layer
