from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from sparsehub.delta import Delta, ParameterDelta, value_dtypes
from sparsehub.delta.delta import check_delta
from sparsehub.errors import DeltaError


def part(indices: Any = (1, 3), values: Any = (0.5, 0.25), shape: tuple[int, ...] = (2, 3)) -> ParameterDelta:
    return ParameterDelta(shape, torch.tensor(indices, dtype=torch.int64), torch.tensor(values))


def test_a_sound_delta_passes(small_delta: Delta) -> None:
    check_delta(small_delta)
    assert small_delta.nnz == 5


def test_first_and_last_entry_are_in_range() -> None:
    check_delta(Delta({"w": part([0, 5])}))


def test_a_parameter_without_dimensions_has_one_entry() -> None:
    scalar = part([0], [1.0], shape=())
    assert scalar.numel == 1
    check_delta(Delta({"scale": scalar}))


def test_the_value_dtypes_are_the_four_of_the_format() -> None:
    assert list(value_dtypes) == ["float32", "float16", "bfloat16", "int8"]


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (part([3, 1]), "not strictly increasing"),
        (part([1, 1]), "not strictly increasing"),
        (part([-1, 3]), "out of range; found: -1..3; expected: 0..5"),
        (part([1, 6]), "out of range; found: 1..6; expected: 0..5"),
        (part([], []), "has no entries"),
        (part([0], [1.0], shape=(0,)), "out of range"),
        (part([1], [0.5, 0.25]), "do not fit together"),
        (part([[1, 3]], [[0.5, 0.25]]), "do not fit together"),
        (ParameterDelta((2, 3), torch.tensor([1, 3], dtype=torch.int32), torch.zeros(2)), "indices in int64"),
        (part(values=[0.5, float("nan")]), "not finite"),
        (part(values=[float("inf"), 0.5]), "not finite"),
        (part(values=[0.5, float("-inf")]), "not finite"),
    ],
)
def test_a_spoilt_parameter_is_refused_by_name(spoilt: ParameterDelta, message: str) -> None:
    with pytest.raises(DeltaError, match=message) as caught:
        check_delta(Delta({"fine": part(), "layer.0.weight": spoilt}))
    assert "layer.0.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {}}, "changes nothing"),
        ({"value_kind": "multiply"}, "found: multiply; expected: add or set"),
        ({"value_dtype": "float64"}, "found: float64"),
        ({"value_kind": "set", "value_dtype": "int8"}, "exact and cannot be int8"),
    ],
)
def test_a_spoilt_delta_is_refused(small_delta: Delta, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DeltaError, match=message):
        check_delta(dataclasses.replace(small_delta, **change))
