"""Rows scaled for products in 8 bits, in C++ and in torch, against plain arithmetic."""

from __future__ import annotations

import pytest
import torch

from sparsehub.kernels import native, scale_rows, scaled_rows, unscale_rows_


@pytest.fixture(params=["native", "torch"], autouse=True)
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(scaled_rows, "_module", lambda: None)
    elif not hasattr(native.extension(), "unscale_rows"):
        pytest.skip("the native kernels are not built: there was no C++ compiler at install")


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (9, 16), (17, 384), (200, 401)])
def test_rows_are_scaled_to_one_and_back(rows: int, width: int) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)) * torch.logspace(-3, 3, rows)[:, None]
    x[rows // 2] = 0
    scaled, sizes = scale_rows(x, 1e-30)
    torch.testing.assert_close(sizes, x.abs().amax(-1).clamp_min(1e-30), rtol=0, atol=0)
    torch.testing.assert_close(scaled, x / sizes[:, None], rtol=1e-6, atol=0)
    assert not scaled[rows // 2].any()
    bias = torch.randn(width)
    for shift in (None, bias):
        y = scaled.clone()
        unscale_rows_(y, sizes, shift)
        torch.testing.assert_close(y, x if shift is None else x + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 15, 16, 20])
def test_a_row_with_a_wrong_value_has_no_finite_one(wrong: float, place: int) -> None:
    """Or it would be rounded to some number in silence."""
    x = torch.ones(3, 21)
    x[1, place] = wrong
    scaled, sizes = scale_rows(x, 1e-30)
    unscale_rows_(scaled, sizes, None)
    assert not scaled[1].isfinite().any() or not torch.isfinite(sizes[1])
    assert torch.equal(scaled[[0, 2]], torch.ones(2, 21))
