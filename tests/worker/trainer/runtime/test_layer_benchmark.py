"""The benchmark measures all matrix products of a decoder layer and has no side effects."""

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
def benchmark(tiny: Path) -> LayerBenchmark:
    return LayerBenchmark(read_catalog_entry(tiny).target_modules.values(), rank=4)


class TestLayerBenchmark:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_each_layer_of_the_model_counts_once(self, benchmark: LayerBenchmark, dtype: str) -> None:
        ticks = count()
        assert benchmark.seconds(plan(dtype, 1, 8), lambda: float(next(ticks))) == 7  # q, k, v, o, gate, up, down

    def test_forward_and_backward_have_the_plans_batch_length_and_dtype(
        self, benchmark: LayerBenchmark, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shapes = []
        forward = AdaptedLinear.forward

        def recorded_forward(layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
            y = forward(layer, x)
            y.register_hook(lambda dy: shapes.append((tuple(x.shape), x.dtype, tuple(dy.shape))))
            return y

        monkeypatch.setattr(AdaptedLinear, "forward", recorded_forward)
        benchmark.seconds(plan("bfloat16", 1, 24), lambda: 0.0)
        bf16 = torch.bfloat16
        assert sorted(shapes, key=str) == sorted(
            [((24, 64), bf16, (24, 64)), ((24, 64), bf16, (24, 32)), ((24, 64), bf16, (24, 128)),
             ((24, 128), bf16, (24, 64))], key=str
        )  # fmt: skip

    def test_the_number_of_threads_is_the_plans(self, benchmark: LayerBenchmark) -> None:
        benchmark.seconds(plan("float32", 2, 8), lambda: 0.0)
        threads = torch.get_num_threads()
        benchmark.seconds(plan("float32", 1, 8), lambda: 0.0)
        assert (threads, torch.get_num_threads()) == (2, 1)

    def test_no_random_generator_is_used(self, benchmark: LayerBenchmark) -> None:
        before, python = torch.get_rng_state(), random.getstate()
        benchmark.seconds(plan("bfloat16", 1, 8), lambda: 0.0)
        assert torch.equal(torch.get_rng_state(), before)
        assert random.getstate() == python

    def test_a_large_layer_is_measured_at_the_maximum_dimension(
        self, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layer_benchmark, "MAX_DIMENSION", 16)
        clipped = LayerBenchmark(read_catalog_entry(tiny).target_modules.values(), rank=64)
        assert clipped.seconds(plan("float32", 1, 8), iter(range(99)).__next__) == 7
        (layer,) = clipped._layers.values()
        assert tuple(layer.base.weight.shape) == (16, 16)
