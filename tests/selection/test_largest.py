from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsehub.delta import Delta
from sparsehub.selection.largest import cut, largest

value = st.sampled_from([-2.0, -1.0, -1e-9, 0.0, 0.5, 1.0, 3.0])
tables = st.dictionaries(st.sampled_from("abc"), st.lists(value, min_size=1, max_size=9), min_size=1)


def dense(delta: Delta) -> dict[str, list[float]]:
    found = {}
    for name, part in delta.parameters.items():
        flat = torch.zeros(part.shape).flatten()
        flat[part.indices] = part.values
        found[name] = flat.tolist()
    return found


@given(tables, st.integers(0, 30))
def test_a_cut_keeps_the_largest_and_says_what_share_they_are(rows: dict[str, list[float]], budget: int) -> None:
    changes: dict[str, Tensor] = {name: torch.tensor(row) for name, row in rows.items()}
    found = cut({n: tuple(t.shape) for n, t in changes.items()}, changes.__getitem__, budget, "float32")
    delta, kept = found.delta, found.kept
    pieces = cut(
        {n: tuple(t.shape) for n, t in changes.items()}, lambda name: iter(changes[name].split(2)), budget, "float32"
    )
    assert dense(pieces.delta) == dense(delta) and pieces.kept == pytest.approx(kept)
    entries = [(name, place, value) for name, row in rows.items() for place, value in enumerate(row)]
    best = sorted(range(len(entries)), key=lambda i: (-abs(torch.tensor(entries[i][2]).item()), i))[:budget]
    wanted = {name: [0.0] * len(row) for name, row in rows.items()}
    for i in best:
        wanted[entries[i][0]][entries[i][1]] = torch.tensor(entries[i][2]).item()
    assert {name: row for name, row in wanted.items() if any(row)} == dense(delta)
    norm = sum(float(t.double().square().sum()) for t in changes.values())
    stays = sum(value**2 for row in wanted.values() for value in row)
    assert kept == pytest.approx(stays / norm if norm else 1.0)


def test_what_is_zero_once_stored_is_left_out() -> None:
    change = {"w": torch.tensor([1.0, 1e-12, 0.0])}
    found = cut({"w": (3,)}, change.__getitem__, 3, "float16")
    assert found.delta.parameters["w"].indices.tolist() == [0] and 0.999 < found.kept <= 1.0
    assert cut({}, change.__getitem__, 3, "float16").kept == 1.0


def test_the_largest_of_a_matrix_are_flat_positions() -> None:
    found = largest(["w"], {"w": torch.tensor([[1.0, -5.0], [3.0, 0.0]])}.__getitem__, 2)
    assert found["w"].tolist() == [1, 2]
