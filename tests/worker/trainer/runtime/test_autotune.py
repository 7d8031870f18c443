"""CPU autotuning: the default stays unless another choice is clearly faster; requested values never change.

The tests replace the benchmark by functions that return the time of a plan, independent of the machine's load.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.events import Command, Message, Planned, Record, SnapshotSaved, Started
from app.domain.jobs.states import ExitCode
from app.domain.planning.execution_plan import ExecutionPlan
from app.system import artifact_directory
from tests.worker.trainer.helpers import final_adapter, make_spec, run_trainer
from worker.trainer import run as program
from worker.trainer.memory import device_memory
from worker.trainer.memory.device_memory import DeviceMemory
from worker.trainer.records import RecordWriter
from worker.trainer.runtime import autotune
from worker.trainer.runtime.autotune import fastest_length, fastest_plan, fastest_threads
from worker.trainer.runtime.layer_benchmark import LayerBenchmark

CPU = torch.device("cpu")
DEFAULT = ExecutionPlan(row_tokens=1024, compute_dtype="bfloat16", threads=2)


def plan_with(compute_dtype: str, threads: int) -> ExecutionPlan:
    return DEFAULT.model_copy(update={"compute_dtype": compute_dtype, "threads": threads})


TimeOf = Callable[[ExecutionPlan], float]  # seconds per token


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture
def replace_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[TimeOf], list[ExecutionPlan]]:
    """Replace the benchmark, on an idle machine of four logical processors and two cores; return the measured plans."""
    monkeypatch.setattr(autotune, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(autotune, "granted_cores", lambda: 4)
    monkeypatch.setattr(program, "choose_threads", lambda: 2)
    monkeypatch.setattr(autotune, "is_crowded", lambda *_: False)
    measured: list[ExecutionPlan] = []

    def replace_benchmark(time_of: TimeOf) -> list[ExecutionPlan]:
        def seconds(_layer: LayerBenchmark, plan: ExecutionPlan, _clock: Any) -> float:
            measured.append(plan)
            return time_of(plan) * plan.row_tokens

        monkeypatch.setattr(LayerBenchmark, "seconds", seconds)
        return measured

    return replace_benchmark


def equally_fast(plan: ExecutionPlan) -> float:
    return 1e-6


def emulated_bfloat16(plan: ExecutionPlan) -> float:
    return 3e-6 if plan.compute_dtype == "bfloat16" else 1e-6


def fast_with_one_thread(plan: ExecutionPlan) -> float:
    return 1e-6 * plan.threads


def fast_with_one_thread_and_float32(plan: ExecutionPlan) -> float:
    return emulated_bfloat16(plan) * plan.threads


def autotune_plan(tiny: Path, examples: Path, tmp_path: Path, **changes: Any) -> tuple[ExecutionPlan, list[Any]]:
    records: list[Record] = []
    spec = make_spec(tiny, examples, **{"threads": None, "dtype_is_free": True, **changes})
    return fastest_plan(spec, tmp_path, CPU, DEFAULT, RecordWriter(records.append, spec.run)), records


class TestDefault:
    def test_stays_if_nothing_is_faster(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        replace_benchmark(equally_fast)
        assert autotune_plan(tiny, examples, tmp_path)[0] == DEFAULT

    @pytest.mark.parametrize("faster_by", [0.95, 0.91])
    def test_stays_if_the_difference_may_be_noise(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any, faster_by: float
    ) -> None:

        def nearly_equally_fast(plan: ExecutionPlan) -> float:
            is_default = plan.compute_dtype == "bfloat16" and plan.threads < 4 and plan.row_tokens != 512
            return 1e-6 if is_default else faster_by * 1e-6

        replace_benchmark(nearly_equally_fast)
        assert autotune_plan(tiny, examples, tmp_path)[0] == DEFAULT

    def test_stays_for_a_model_with_few_linear_parameters(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured = replace_benchmark(fast_with_one_thread_and_float32)
        monkeypatch.setattr(autotune, "MIN_PARAMETERS", 10_000_000)
        assert (autotune_plan(tiny, examples, tmp_path), measured) == ((DEFAULT, []), [])

    def test_stays_on_a_gpu(self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any) -> None:
        measured = replace_benchmark(fast_with_one_thread_and_float32)
        spec = make_spec(tiny, examples, threads=None, dtype_is_free=True)
        writer = RecordWriter(lambda _: None, spec.run)
        assert fastest_plan(spec, tmp_path, torch.device("cuda"), DEFAULT, writer) == DEFAULT
        assert measured == []

    def test_stays_if_the_benchmark_fails_and_the_error_is_logged(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(plan: ExecutionPlan) -> float:
            raise RuntimeError("could not create a primitive")

        replace_benchmark(broken)
        assert autotune_plan(tiny, examples, tmp_path) == (DEFAULT, [])
        logged = capsys.readouterr().err
        assert "could not create a primitive" in logged
        assert "CPU autotuning failed; training continues in bfloat16 with 2 threads." in logged


class TestRequestedValues:
    def test_a_requested_dtype_is_not_measured(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        measured = replace_benchmark(emulated_bfloat16)
        plan, _ = autotune_plan(tiny, examples, tmp_path, dtype_is_free=False)
        assert plan == DEFAULT
        assert {each.compute_dtype for each in measured} == {"bfloat16"}

    def test_with_requested_threads_neither_threads_nor_batch_lengths_are_measured(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        measured = replace_benchmark(fast_with_one_thread_and_float32)
        plan, _ = autotune_plan(tiny, examples, tmp_path, threads=2)
        assert plan == plan_with("float32", 2)
        assert {each.row_tokens for each in measured} == {autotune.BENCHMARK_TOKENS}

    def test_with_both_nothing_is_measured(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        measured = replace_benchmark(fast_with_one_thread_and_float32)
        assert autotune_plan(tiny, examples, tmp_path, threads=2, dtype_is_free=False) == (DEFAULT, [])
        assert measured == []

    def test_sixteen_bit_lora_computes_in_sixteen_bits(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        replace_benchmark(emulated_bfloat16)
        assert autotune_plan(tiny, examples, tmp_path, quantization=None)[0] == DEFAULT


class TestComputeDtype:
    def test_float32_if_the_processor_emulates_bfloat16(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        replace_benchmark(emulated_bfloat16)
        plan, (message,) = autotune_plan(tiny, examples, tmp_path)
        assert plan == plan_with("float32", 2)
        assert message.message == (
            "CPU autotuning: training in float32 with 2 threads. Measured times of a layer: float32 0.33x that of "
            "bfloat16; 1 thread 1.00x, 4 threads 1.00x that of 2 threads; batches of 768 tokens 1.00x, batches of 512 "
            "tokens 1.00x, batches of 256 tokens 1.00x that of batches of 1,024 tokens."
        )
        assert message.data["microseconds_per_token"]["compute_dtype"] == {"bfloat16": 3.0, "float32": 1.0}
        assert message.data["chosen"] == {"compute_dtype": "float32", "threads": 2, "row_tokens": None}
        assert 0 <= message.data["probe_seconds"] < 60

    def test_a_third_less_in_the_products_is_not_enough_because_other_operations_take_longer(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        replace_benchmark(lambda plan: 1e-6 if plan.compute_dtype == "bfloat16" else 0.66e-6)
        assert autotune_plan(tiny, examples, tmp_path)[0] == DEFAULT

    def test_never_if_it_does_not_fit_into_memory(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace_benchmark(emulated_bfloat16)
        monkeypatch.setattr(device_memory, "measure", lambda _: DeviceMemory(100_000_000, 50_000_000))
        plan, (message,) = autotune_plan(tiny, examples, tmp_path)
        assert plan == DEFAULT
        assert "float32 would be faster, but needs more memory than is free." in message.message

    def test_never_after_a_kill_for_memory(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        replace_benchmark(emulated_bfloat16)
        assert autotune_plan(tiny, examples, tmp_path, out_of_memory_kills=1)[0] == DEFAULT


class TestThreads:
    def test_fewer_if_they_are_faster(self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any) -> None:
        replace_benchmark(fast_with_one_thread)
        assert autotune_plan(tiny, examples, tmp_path)[0] == plan_with("bfloat16", 1)

    def test_two_per_core_if_they_are_faster(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        replace_benchmark(lambda plan: 1e-6 / plan.threads)
        assert autotune_plan(tiny, examples, tmp_path)[0] == plan_with("bfloat16", 4)

    def test_default_threads_are_kept_while_other_programs_use_the_cpu(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace_benchmark(fast_with_one_thread_and_float32)
        monkeypatch.setattr(autotune, "is_crowded", lambda *_: True)
        plan, (message,) = autotune_plan(tiny, examples, tmp_path)
        assert plan == plan_with("float32", 2)
        assert "Other programs use the CPU" in message.message

    @pytest.mark.parametrize(("one", "chosen"), [(0.5, 1), (0.89, 1), (0.91, 2), (1.1, 2)])
    def test_a_saving_below_a_tenth_does_not_count(self, one: float, chosen: int) -> None:
        assert fastest_threads({2: 1.0, 1: one}) == chosen


class TestBatchLengths:
    @pytest.mark.parametrize(
        ("seconds", "chosen"),
        [
            ({1024: 1.0, 512: 1.0, 256: 1.0}, None),
            ({1024: 1.0, 512: 0.75, 256: 1.0}, None),  # 15 % of the step, of which launches take 9
            ({1024: 1.0, 512: 0.6, 256: 0.6}, 512),
            ({1024: 1.0, 512: 0.6, 256: 0.1}, 256),
        ],
    )
    def test_shorter_ones_must_save_more_than_their_kernel_launches_cost(
        self, seconds: dict[int, float], chosen: int | None
    ) -> None:
        assert fastest_length(seconds) == chosen

    def test_only_lengths_that_can_be_chosen_are_measured(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        measured = replace_benchmark(equally_fast)
        autotune_plan(tiny, examples, tmp_path)
        assert {each.row_tokens for each in measured} == {1024, 768, 512, 256}

    def test_the_plan_has_the_fastest_length(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        replace_benchmark(lambda plan: 0.5e-6 if plan.row_tokens == 512 else 1e-6)
        code, log = run_trainer(make_spec(tiny, examples, threads=None, max_steps=1), tmp_path)
        assert (code, log.of(Planned)[0].mode.row_tokens) == (ExitCode.DONE, 512)


class TestSideEffects:
    def test_weights_and_random_states_stay_unchanged(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any, monkeypatch: Any
    ) -> None:
        """The adapter equals that of a run that requests the same values, so that nothing is measured."""
        seconds, timings = LayerBenchmark.seconds, []
        replace_benchmark(fast_with_one_thread_and_float32)
        fake = LayerBenchmark.seconds

        def both(products: LayerBenchmark, plan: ExecutionPlan, clock: Any) -> float:
            timings.append(seconds(products, plan, clock))
            return fake(products, plan, clock)

        monkeypatch.setattr(LayerBenchmark, "seconds", both)
        before, python = torch.get_rng_state(), random.getstate()
        free = make_spec(tiny, examples, dropout=0.2, threads=None, dtype_is_free=True)
        asked = make_spec(tiny, examples, dropout=0.2, threads=1, quantization={"compute_dtype": "float32"})
        logs = {name: run_trainer(spec, tmp_path / name)[1] for name, spec in (("free", free), ("asked", asked))}
        assert timings
        assert torch.equal(torch.get_rng_state(), before)
        assert random.getstate() == python
        manifests = [artifact_directory.verify(tmp_path / name / log.last.directory) for name, log in logs.items()]
        assert manifests[0]["quantization"] == manifests[1]["quantization"]
        started = [log.of(Started)[0] for log in logs.values()]
        assert {(each.compute_dtype, each.threads) for each in started} == {("float32", 1)}
        one, other = (final_adapter(log, tmp_path / name) for name, log in logs.items())
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_a_later_attempt_keeps_the_choice_of_the_first(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        changes: dict[str, Any] = {"threads": None, "dtype_is_free": True, "dropout": 0.2, "n_epochs": 2}
        replace_benchmark(fast_with_one_thread_and_float32)
        _, uninterrupted = run_trainer(make_spec(tiny, examples, **changes), tmp_path / "whole")
        _, first = run_trainer(make_spec(tiny, examples, **changes), tmp_path / "first", stop_at=(3, Command.DRAIN))
        snapshot = tmp_path / "first" / first.of(SnapshotSaved)[-1].directory

        measured = replace_benchmark(lambda plan: 1e-6 / fast_with_one_thread_and_float32(plan))
        measured.clear()
        _, second = run_trainer(make_spec(tiny, examples, resume_from=snapshot, **changes), tmp_path / "second")
        assert measured == []
        started = second.of(Started)[0]
        assert (started.start_step, started.compute_dtype, started.threads) == (3, "float32", 1)
        assert not [each for each in second.of(Message) if each.message.startswith("CPU autotuning")]
        one, other = final_adapter(uninterrupted, tmp_path / "whole"), final_adapter(second, tmp_path / "second")
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_the_memory_plan_uses_the_chosen_dtype(
        self, tiny: Path, examples: Path, tmp_path: Path, replace_benchmark: Any
    ) -> None:
        plans = []
        for name, time_of in (("narrow", equally_fast), ("wide", emulated_bfloat16)):
            replace_benchmark(time_of)
            spec = make_spec(tiny, examples, max_steps=1, dtype_is_free=True)
            plans.append(run_trainer(spec, tmp_path / name)[1].of(Planned)[0])
        assert plans[1].components["cache"] == 2 * plans[0].components["cache"] > 0
