from __future__ import annotations

import pytest
import torch

from worker.trainer.runtime import products
from worker.trainer.runtime.products import linear, product


@pytest.fixture(params=[True, False])
def is_emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "_is_emulated", lambda _: request.param)
    monkeypatch.setattr(products, "CONVERTED_ROWS", 48)
    return bool(request.param)


@pytest.mark.usefixtures("is_emulated")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_both_ways_round_the_same_sums(dtype: torch.dtype) -> None:
    dice = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=dice).to(dtype) for shape in ((20, 100), (100, 30)))
    bias = torch.randn(30, generator=dice).to(dtype)
    exact = left.double() @ right.double()
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 100 * torch.finfo(torch.float32).eps}
    torch.testing.assert_close(product(left, right), exact.to(dtype), **tolerance)
    torch.testing.assert_close(linear(left, right.t(), None), exact.to(dtype), **tolerance)
    with_bias = linear(left, right.t(), bias)
    torch.testing.assert_close(
        with_bias, (exact + bias.double()).to(dtype), rtol=0, atol=8 * torch.finfo(dtype).eps * 10
    )


def test_float32_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_emulated", pytest.fail)
    ones = torch.ones(2, 2)
    assert torch.equal(product(ones, ones), 2 * ones)


def test_a_batch_of_rows_keeps_its_shape(is_emulated: bool) -> None:
    x_B_T_K, weight_D_K = torch.ones(2, 3, 100, dtype=torch.bfloat16), torch.ones(30, 100, dtype=torch.bfloat16)
    y_B_T_D = linear(x_B_T_K, weight_D_K, torch.ones(30, dtype=torch.bfloat16))
    assert torch.equal(y_B_T_D, torch.full((2, 3, 30), 101, dtype=torch.bfloat16))
    if is_emulated:
        assert y_B_T_D._base is None  # a view that a Function returns cannot be changed in place
