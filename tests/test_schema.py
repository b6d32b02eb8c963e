from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from sparsehub.errors import ManifestError, UsageError
from sparsehub.schema import build, unknown_name


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float
    steps: int = 10
    verbose: bool = False
    shape: tuple[int, ...] = ()
    inner: Inner | None = None
    table: dict[str, Inner] = field(default_factory=dict)
    anything: Any = None


SOUND: dict[str, Any] = {"name": "n", "rate": 0.5}


def test_all_types_are_built() -> None:
    data = {
        **SOUND,
        "steps": 3,
        "verbose": True,
        "shape": [1, 2],
        "inner": {"size": 1},
        "table": {"a": {"size": 2}},
        "anything": [{}],
    }
    assert build(Outer, data, "it", UsageError) == Outer("n", 0.5, 3, True, (1, 2), Inner(1), {"a": Inner(2)}, [{}])


def test_defaults_fill_in_what_is_absent() -> None:
    assert build(Outer, SOUND, "it", UsageError) == Outer("n", 0.5)


def test_a_whole_number_is_a_float() -> None:
    rate = build(Outer, {**SOUND, "rate": 1}, "it", UsageError).rate
    assert (rate, type(rate)) == (1.0, float)


def test_null_is_taken_where_it_may_be() -> None:
    assert build(Outer, {**SOUND, "inner": None}, "it", UsageError).inner is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 5}, r"it\.name has the wrong type; found: int 5; expected: str"),
        ({"name": None}, r"it\.name has the wrong type"),
        ({"rate": "0.5"}, r"it\.rate has the wrong type; found: str '0\.5'; expected: float"),
        ({"rate": True}, r"it\.rate has the wrong type; found: bool"),
        ({"rate": float("nan")}, r"it\.rate is not finite"),
        ({"rate": float("inf")}, r"it\.rate is not finite"),
        ({"rate": 10**400}, r"it\.rate has the wrong type"),
        ({"steps": 1.0}, r"it\.steps has the wrong type; found: float 1\.0; expected: int"),
        ({"steps": True}, r"it\.steps has the wrong type; found: bool"),
        ({"verbose": 1}, r"it\.verbose has the wrong type"),
        ({"verbose": "yes"}, r"it\.verbose has the wrong type"),
        ({"shape": 5}, r"it\.shape has the wrong type"),
        ({"shape": "12"}, r"it\.shape has the wrong type"),
        ({"shape": [1, "2"]}, r"it\.shape\[1\] has the wrong type"),
        ({"inner": {"size": "1"}}, r"it\.inner\.size has the wrong type"),
        ({"inner": [1]}, r"it\.inner has the wrong type; found: list; expected: an object"),
        ({"inner": {}}, r"it\.inner lacks size"),
        ({"table": []}, r"it\.table has the wrong type"),
        ({"table": {"a": {"size": None}}}, r"it\.table\.a\.size has the wrong type"),
    ],
)
def test_a_wrong_value_is_refused_by_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        build(Outer, {**SOUND, **change}, "it", ManifestError)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(UsageError) as caught:
        build(Outer, {**SOUND, "steps": "x" * 10_000}, "it", UsageError)
    assert len(str(caught.value)) < 250


def test_what_is_missing_is_listed() -> None:
    with pytest.raises(UsageError, match="it lacks name, rate"):
        build(Outer, {}, "it", UsageError)


@pytest.mark.parametrize("data", [None, [], "text", 5, [["name", "n"]]])
def test_only_an_object_is_built(data: Any) -> None:
    with pytest.raises(UsageError, match="it has the wrong type"):
        build(Outer, data, "it", UsageError)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="it: unknown key 'stepz', did you mean 'steps'"):
        build(Outer, {**SOUND, "stepz": 5}, "it", UsageError)


def test_an_unknown_key_like_nothing_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"it\.inner: unknown key 'qqqqq' \(known: size\)"):
        build(Outer, {**SOUND, "inner": {"size": 1, "qqqqq": 5}}, "it", UsageError)


def test_a_very_long_unknown_name_is_cut() -> None:
    assert len(unknown_name("key", "a" * 1_000_000, ["name"])) < 300
