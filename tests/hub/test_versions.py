from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.hub import highest, version_order

pytestmark = pytest.mark.soak
versions = st.from_regex(r"[0-9A-Za-z]([0-9A-Za-z.+-]{0,10}[0-9A-Za-z])?", fullmatch=True) | st.from_regex(
    r"v?[0-9]{1,2}(\.[0-9]{1,2}){0,3}(-(rc|alpha)?(\.?[0-9]{1,2})?)?(\+[a-z0-9]{1,3})?", fullmatch=True
)


@given(st.lists(versions, unique=True))
def test_the_order_is_total_and_does_not_depend_on_where_it_starts(found: list[str]) -> None:
    ordered = sorted(found, key=version_order)
    shuffled = random.Random(0).sample(found, len(found))
    assert sorted(shuffled, key=version_order) == ordered
    keys = [version_order(version) for version in ordered]
    assert all(low < high for low, high in pairwise(keys))


@given(st.lists(versions, min_size=1))
def test_the_highest_is_one_of_them(found: list[str]) -> None:
    assert highest(found) in found


def test_semver_precedence() -> None:
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"]
    ordered += ["1.0.0-rc.1", "1.0.0", "1.9.0", "1.10.0", "2.0.0"]
    assert sorted(set(ordered), key=version_order) == ordered


def test_words_lie_below_numbers_in_natural_order() -> None:
    ordered = ["nightly", "run-2", "run-9", "run-10", "0.1", "v1", "1.0.1", "2"]
    assert sorted(set(ordered), key=version_order) == ordered


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["1.0.0", "1.10.0", "1.9.0"], "1.10.0"),
        (["1.0.0", "2.0.0-rc.1"], "1.0.0"),
        (["1.0.0-rc.1", "1.0.0-rc.2"], "1.0.0-rc.2"),
        (["nightly", "0.1.0"], "0.1.0"),
        (["nightly", "0.1.0-rc.1"], "0.1.0-rc.1"),
        (["run-9", "run-10"], "run-10"),
    ],
)
def test_what_a_bare_name_means(found: list[str], expected: str) -> None:
    assert highest(found) == expected
