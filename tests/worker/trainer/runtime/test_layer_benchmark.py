"""A decoder layer's products, timed by themselves: all of them, and nothing else is touched."""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path

import pytest
import torch

from app.domain.planning.execution_plan import ExecutionPlan
from app.system.model_files import read_catalog_entry
from worker.trainer.adapter.lora import AdaptedLinear
from worker.trainer.runtime import layer_benchmark
from worker.trainer.runtime.layer_benchmark import LayerBenchmark


def plan(dtype: str, threads: int, row_tokens: int) -> ExecutionPlan:
    return ExecutionPlan(row_tokens=row_tokens, compute_dtype=dtype, threads=threads)


@pytest.fixture
def timed(tiny: Path) -> LayerBenchmark:
    return LayerBenchmark(read_catalog_entry(tiny).target_modules.values(), rank=4)


class TestProducts:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_each_layer_of_the_model_counts_once(self, timed: LayerBenchmark, dtype: str) -> None:
        ticks = count()
        assert timed.seconds(plan(dtype, 1, 8), lambda: float(next(ticks))) == 7  # q, k, v, o, gate, up, down

    def test_forward_and_backward_are_of_the_plans_batch_in_its_numbers(
        self, timed: LayerBenchmark, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        forward = AdaptedLinear.forward

        def watched(layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
            y = forward(layer, x)
            y.register_hook(lambda dy: seen.append((tuple(x.shape), x.dtype, tuple(dy.shape))))
            return y

        monkeypatch.setattr(AdaptedLinear, "forward", watched)
        timed.seconds(plan("bfloat16", 1, 24), lambda: 0.0)
        bf16 = torch.bfloat16
        assert sorted(seen, key=str) == sorted(
            [((24, 64), bf16, (24, 64)), ((24, 64), bf16, (24, 32)), ((24, 64), bf16, (24, 128)),
             ((24, 128), bf16, (24, 64))], key=str
        )  # fmt: skip

    def test_the_number_of_threads_is_the_plans(self, timed: LayerBenchmark) -> None:
        timed.seconds(plan("float32", 2, 8), lambda: 0.0)
        threads = torch.get_num_threads()
        timed.seconds(plan("float32", 1, 8), lambda: 0.0)
        assert (threads, torch.get_num_threads()) == (2, 1)

    def test_no_dice_are_thrown(self, timed: LayerBenchmark) -> None:
        before, python = torch.get_rng_state(), random.getstate()
        timed.seconds(plan("bfloat16", 1, 8), lambda: 0.0)
        assert torch.equal(torch.get_rng_state(), before)
        assert random.getstate() == python

    def test_a_large_layer_is_timed_at_a_size_that_takes_no_time(
        self, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layer_benchmark, "LARGEST_SIDE", 16)
        clipped = LayerBenchmark(read_catalog_entry(tiny).target_modules.values(), rank=64)
        assert clipped.seconds(plan("float32", 1, 8), iter(range(99)).__next__) == 7
        (layer,) = clipped._layers.values()
        assert tuple(layer.base.weight.shape) == (16, 16)
