"""An embedding's sparse gradient, read at positions, is the dense one."""

from __future__ import annotations

import pytest
import torch

from sparsehub.training.sparse_model import gradient_at


@pytest.mark.parametrize("tokens", [[3, 3, 0], [9, 1, 9, 1, 4], [0]])
def test_used_rows_have_their_gradient_and_others_none(tokens: list[int]) -> None:
    weight = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([0, 3, 4, 13, 14, 17, 36, 39])
    gradients = {}
    for sparse in (False, True):
        table = torch.nn.Embedding.from_pretrained(weight.clone(), freeze=False, sparse=sparse)
        (table(torch.tensor(tokens)) * torch.arange(4.0)).sum().square().backward()
        assert table.weight.grad is not None
        assert table.weight.grad.is_sparse is sparse
        gradients[sparse] = gradient_at(table.weight.grad, positions)
    assert torch.equal(gradients[True], gradients[False])
    assert bool((gradients[True] != 0).any()) or tokens == [0]


def test_a_sparse_gradient_without_rows_is_zero() -> None:
    empty = torch.sparse_coo_tensor(torch.empty(1, 0, dtype=torch.long), torch.empty(0, 4), (10, 4))
    assert gradient_at(empty, torch.tensor([0, 39])).tolist() == [0.0, 0.0]
