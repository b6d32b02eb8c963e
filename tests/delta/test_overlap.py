from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.delta import Delta, Overlap, ParameterDelta, overlap

Entries = dict[int, float]
parts = st.dictionaries(
    st.sampled_from(["a.weight", "b.weight", "c.bias"]),
    st.dictionaries(st.integers(0, 30), st.sampled_from([-2.0, -0.5, 1.0, 3.0]), min_size=1),
    max_size=3,
)


def delta(table: dict[str, Entries]) -> Delta:
    made = {}
    for name, entries in table.items():
        places = sorted(entries)
        made[name] = ParameterDelta((31,), torch.tensor(places), torch.tensor([entries[p] for p in places]))
    return Delta(made, "add", "float32")


@given(parts, parts)
def test_an_overlap_counts_what_sets_of_entries_count(first: dict[str, Entries], second: dict[str, Entries]) -> None:
    a = {(name, place): value for name, entries in first.items() for place, value in entries.items()}
    b = {(name, place): value for name, entries in second.items() for place, value in entries.items()}
    both = a.keys() & b.keys()
    found = overlap(delta(first), delta(second))
    assert found == Overlap(len(both), len(a.keys() | b.keys()), sum((a[k] > 0) == (b[k] > 0) for k in both))
    assert overlap(delta(second), delta(first)) == found


@given(parts)
def test_a_delta_is_its_own_like(table: dict[str, Entries]) -> None:
    found = overlap(delta(table), delta(table))
    assert found.jaccard == found.sign_agreement == (1.0 if table else 0.0)


def test_deltas_without_a_common_entry_have_no_overlap() -> None:
    found = overlap(delta({"a.weight": {1: 1.0}}), delta({"a.weight": {2: 1.0}, "b.weight": {1: 1.0}}))
    assert (found.jaccard, found.sign_agreement, found.either) == (0.0, 0.0, 3)
