"""A decoder layer's products, timed by themselves: all of them, and nothing else is touched."""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path

import pytest
import torch

from app.domain.catalog import describe
from worker.trainer import products
from worker.trainer.device import Way
from worker.trainer.lora import AdaptedLinear
from worker.trainer.products import Products


@pytest.fixture
def timed(tiny: Path) -> Products:
    return Products(describe(tiny).target_modules.values(), rank=4)


class TestProducts:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_each_layer_of_the_model_counts_once(self, timed: Products, dtype: torch.dtype) -> None:
        ticks = count()
        assert timed.seconds(Way(dtype, 1, 8), lambda: float(next(ticks))) == 7  # q, k, v, o, gate, up, down

    def test_forward_and_backward_are_of_the_ways_row_in_its_numbers(
        self, timed: Products, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        forward = AdaptedLinear.forward

        def watched(layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
            y = forward(layer, x)
            y.register_hook(lambda dy: seen.append((tuple(x.shape), x.dtype, tuple(dy.shape))))
            return y

        monkeypatch.setattr(AdaptedLinear, "forward", watched)
        timed.seconds(Way(torch.bfloat16, 1, 24), lambda: 0.0)
        bf16 = torch.bfloat16
        assert sorted(seen, key=str) == sorted(
            [((24, 64), bf16, (24, 64)), ((24, 64), bf16, (24, 32)), ((24, 64), bf16, (24, 128)),
             ((24, 128), bf16, (24, 64))], key=str
        )  # fmt: skip

    def test_the_number_of_threads_is_the_ways(self, timed: Products) -> None:
        timed.seconds(Way(torch.float32, 2, 8), lambda: 0.0)
        threads = torch.get_num_threads()
        timed.seconds(Way(torch.float32, 1, 8), lambda: 0.0)
        assert (threads, torch.get_num_threads()) == (2, 1)

    def test_no_dice_are_thrown(self, timed: Products) -> None:
        before, python = torch.get_rng_state(), random.getstate()
        timed.seconds(Way(torch.bfloat16, 1, 8), lambda: 0.0)
        assert torch.equal(torch.get_rng_state(), before)
        assert random.getstate() == python

    def test_a_large_layer_is_timed_at_a_size_that_takes_no_time(
        self, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(products, "LARGEST_SIDE", 16)
        clipped = Products(describe(tiny).target_modules.values(), rank=64)
        assert clipped.seconds(Way(torch.float32, 1, 8), iter(range(99)).__next__) == 7
        (layer,) = clipped._layers.values()
        assert tuple(layer.base.weight.shape) == (16, 16)
