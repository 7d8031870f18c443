"""What is fastest here: a rule until something is faster by a margin, and nothing that was asked for changes.

The stopwatch is the tests' own: it says how long each plan takes, whatever the machine does meanwhile.
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
from worker.trainer.runtime.autotune import fastest_plan, fastest_row, fastest_threads
from worker.trainer.runtime.layer_benchmark import LayerBenchmark

CPU = torch.device("cpu")
RULE = ExecutionPlan(row_tokens=1024, compute_dtype="bfloat16", threads=2)


def plan(compute_dtype: str, threads: int) -> ExecutionPlan:
    return RULE.model_copy(update={"compute_dtype": compute_dtype, "threads": threads})


Stopwatch = Callable[[ExecutionPlan], float]  # seconds a token


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stopwatch], list[ExecutionPlan]]:
    """Put a stopwatch in place, on a quiet machine of four logical processors and two cores. Returns what it timed."""
    monkeypatch.setattr(autotune, "LEAST_PARAMETERS", 0)
    monkeypatch.setattr(autotune, "granted_cores", lambda: 4)
    monkeypatch.setattr(program, "choose_threads", lambda: 2)
    monkeypatch.setattr(autotune, "is_crowded", lambda *_: False)
    seen: list[ExecutionPlan] = []

    def put(stopwatch: Stopwatch) -> list[ExecutionPlan]:
        def seconds(_products: LayerBenchmark, found: ExecutionPlan, _clock: Any) -> float:
            seen.append(found)
            return stopwatch(found) * found.row_tokens

        monkeypatch.setattr(LayerBenchmark, "seconds", seconds)
        return seen

    return put


def alike(found: ExecutionPlan) -> float:
    return 1e-6


def imitates_bfloat16(found: ExecutionPlan) -> float:
    return 3e-6 if found.compute_dtype == "bfloat16" else 1e-6


def likes_one_thread(found: ExecutionPlan) -> float:
    return 1e-6 * found.threads


def likes_one_thread_and_float32(found: ExecutionPlan) -> float:
    return imitates_bfloat16(found) * found.threads


def look(tiny: Path, examples: Path, tmp_path: Path, **changes: Any) -> tuple[ExecutionPlan, list[Any]]:
    said: list[Record] = []
    spec = make_spec(tiny, examples, **{"threads": None, "dtype_is_free": True, **changes})
    return fastest_plan(spec, tmp_path, CPU, RULE, RecordWriter(said.append, spec.run)), said


class TestTheRule:
    def test_stays_where_nothing_is_faster(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any) -> None:
        timed(alike)
        assert look(tiny, examples, tmp_path)[0] == RULE

    @pytest.mark.parametrize("faster_by", [0.95, 0.91])
    def test_stays_where_noise_could_have_made_the_difference(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any, faster_by: float
    ) -> None:

        def nearly_alike(found: ExecutionPlan) -> float:
            is_rule = found.compute_dtype == "bfloat16" and found.threads < 4 and found.row_tokens != 512
            return 1e-6 if is_rule else faster_by * 1e-6

        timed(nearly_alike)
        assert look(tiny, examples, tmp_path)[0] == RULE

    def test_stays_for_a_model_so_small_that_its_time_goes_elsewhere(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = timed(likes_one_thread_and_float32)
        monkeypatch.setattr(autotune, "LEAST_PARAMETERS", 10_000_000)
        assert (look(tiny, examples, tmp_path), seen) == ((RULE, []), [])

    def test_stays_on_a_gpu(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any) -> None:
        seen = timed(likes_one_thread_and_float32)
        spec = make_spec(tiny, examples, threads=None, dtype_is_free=True)
        assert fastest_plan(spec, tmp_path, torch.device("cuda"), RULE, RecordWriter(lambda _: None, spec.run)) == RULE
        assert seen == []

    def test_stays_where_the_probe_fails_and_the_log_says_so(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(found: ExecutionPlan) -> float:
            raise RuntimeError("could not create a primitive")

        timed(broken)
        assert look(tiny, examples, tmp_path) == (RULE, [])
        logged = capsys.readouterr().err
        assert "could not create a primitive" in logged
        assert "What is fastest here could not be timed; going on in bfloat16 with 2 threads." in logged


class TestWhatWasAskedFor:
    def test_a_type_is_not_timed(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any) -> None:
        seen = timed(imitates_bfloat16)
        found, _ = look(tiny, examples, tmp_path, dtype_is_free=False)
        assert found == RULE
        assert {each.compute_dtype for each in seen} == {"bfloat16"}

    def test_a_number_of_threads_is_not_timed_nor_are_rows_then(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any
    ) -> None:
        seen = timed(likes_one_thread_and_float32)
        found, _ = look(tiny, examples, tmp_path, threads=2)
        assert found == plan("float32", 2)
        assert {each.row_tokens for each in seen} == {autotune.TOKENS}

    def test_both_leave_nothing_to_time(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any) -> None:
        seen = timed(likes_one_thread_and_float32)
        assert look(tiny, examples, tmp_path, threads=2, dtype_is_free=False) == (RULE, [])
        assert seen == []

    def test_sixteen_bit_lora_is_in_sixteen_bits(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any) -> None:
        timed(imitates_bfloat16)
        assert look(tiny, examples, tmp_path, quantization=None)[0] == RULE


class TestComputeDtype:
    def test_float32_where_the_processor_imitates_bfloat16(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any
    ) -> None:
        timed(imitates_bfloat16)
        found, (message,) = look(tiny, examples, tmp_path)
        assert found == plan("float32", 2)
        assert message.message == (
            "Timed a layer's products: float32 0.33 times bfloat16; 1 thread 1.00, 4 threads 1.00 times 2 threads; "
            "rows of 768 1.00, rows of 512 1.00, rows of 256 1.00 times rows of 1,024. "
            "Training in float32 with 2 threads."
        )
        assert message.data["microseconds_per_token"]["compute_dtype"] == {"bfloat16": 3.0, "float32": 1.0}
        assert message.data["chosen"] == {"compute_dtype": "float32", "threads": 2, "row_tokens": None}
        assert 0 <= message.data["probe_seconds"] < 60

    def test_what_is_beside_the_products_takes_twice_as_long_so_a_third_less_is_not_enough(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any
    ) -> None:
        timed(lambda found: 1e-6 if found.compute_dtype == "bfloat16" else 0.66e-6)
        assert look(tiny, examples, tmp_path)[0] == RULE

    def test_never_where_memory_is_too_short_for_it(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timed(imitates_bfloat16)
        monkeypatch.setattr(device_memory, "measure", lambda _: DeviceMemory(100_000_000, 50_000_000))
        found, (message,) = look(tiny, examples, tmp_path)
        assert found == RULE
        assert "float32 would be faster, but takes more memory than there is." in message.message

    def test_never_after_a_kill_for_memory(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any) -> None:
        timed(imitates_bfloat16)
        assert look(tiny, examples, tmp_path, out_of_memory_kills=1)[0] == RULE


class TestThreads:
    def test_fewer_where_more_wait_for_each_other(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any) -> None:
        timed(likes_one_thread)
        assert look(tiny, examples, tmp_path)[0] == plan("bfloat16", 1)

    def test_two_for_each_core_where_that_is_faster(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any
    ) -> None:
        timed(lambda found: 1e-6 / found.threads)
        assert look(tiny, examples, tmp_path)[0] == plan("bfloat16", 4)

    def test_are_not_judged_while_others_use_the_cores(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        timed(likes_one_thread_and_float32)
        monkeypatch.setattr(autotune, "is_crowded", lambda *_: True)
        found, (message,) = look(tiny, examples, tmp_path)
        assert found == plan("float32", 2)
        assert "Other programs use the cores" in message.message

    @pytest.mark.parametrize(("one", "chosen"), [(0.5, 1), (0.89, 1), (0.91, 2), (1.1, 2)])
    def test_only_a_tenth_less_is_less(self, one: float, chosen: int) -> None:
        assert fastest_threads({2: 1.0, 1: one}) == chosen


class TestRows:
    @pytest.mark.parametrize(
        ("seconds", "chosen"),
        [
            ({1024: 1.0, 512: 1.0, 256: 1.0}, None),
            ({1024: 1.0, 512: 0.75, 256: 1.0}, None),  # 15 % of the step, of which launches take 9
            ({1024: 1.0, 512: 0.6, 256: 0.6}, 512),
            ({1024: 1.0, 512: 0.6, 256: 0.1}, 256),
        ],
    )
    def test_shorter_ones_must_save_more_than_their_launches_cost(
        self, seconds: dict[int, float], chosen: int | None
    ) -> None:
        assert fastest_row(seconds) == chosen

    def test_none_is_timed_that_cannot_win(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any) -> None:
        seen = timed(alike)
        look(tiny, examples, tmp_path)
        assert {each.row_tokens for each in seen} == {1024, 768, 512, 256}

    def test_the_plan_keeps_to_the_fastest(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any) -> None:
        timed(lambda found: 0.5e-6 if found.row_tokens == 512 else 1e-6)
        code, log = run_trainer(make_spec(tiny, examples, threads=None, max_steps=1), tmp_path)
        assert (code, log.of(Planned)[0].mode.row_tokens) == (ExitCode.DONE, 512)


class TestNothingElseChanges:
    def test_weights_and_dice(self, tiny: Path, examples: Path, tmp_path: Path, timed: Any, monkeypatch: Any) -> None:
        """The adapter is that of a run in which the same was asked for by name and nothing was timed."""
        seconds, timings = LayerBenchmark.seconds, []
        timed(likes_one_thread_and_float32)
        fake = LayerBenchmark.seconds

        def both(products: LayerBenchmark, found: ExecutionPlan, clock: Any) -> float:
            timings.append(seconds(products, found, clock))
            return fake(products, found, clock)

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

    def test_a_later_attempt_keeps_what_the_first_one_found(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any
    ) -> None:
        knobs: dict[str, Any] = {"threads": None, "dtype_is_free": True, "dropout": 0.2, "n_epochs": 2}
        timed(likes_one_thread_and_float32)
        _, whole = run_trainer(make_spec(tiny, examples, **knobs), tmp_path / "whole")
        _, first = run_trainer(make_spec(tiny, examples, **knobs), tmp_path / "first", stop_at=(3, Command.DRAIN))
        snapshot = tmp_path / "first" / first.of(SnapshotSaved)[-1].directory

        seen = timed(lambda found: 1e-6 / likes_one_thread_and_float32(found))
        seen.clear()
        _, second = run_trainer(make_spec(tiny, examples, resume_from=snapshot, **knobs), tmp_path / "second")
        assert seen == []
        started = second.of(Started)[0]
        assert (started.start_step, started.compute_dtype, started.threads) == (3, "float32", 1)
        assert not [each for each in second.of(Message) if each.message.startswith("Timed")]
        one, other = final_adapter(whole, tmp_path / "whole"), final_adapter(second, tmp_path / "second")
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_the_plan_counts_the_numbers_that_are_computed_in(
        self, tiny: Path, examples: Path, tmp_path: Path, timed: Any
    ) -> None:
        plans = []
        for name, stopwatch in (("narrow", alike), ("wide", imitates_bfloat16)):
            timed(stopwatch)
            spec = make_spec(tiny, examples, max_steps=1, dtype_is_free=True)
            plans.append(run_trainer(spec, tmp_path / name)[1].of(Planned)[0])
        assert plans[1].components["cache"] == 2 * plans[0].components["cache"] > 0
