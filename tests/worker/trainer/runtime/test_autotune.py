"""CPU autotuning: the default dtype stays unless float32 is clearly faster; requested values never change.

The tests replace the measured ratio, so that they are independent of the machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.events import Command, Message, Planned, Record, SnapshotSaved, Started
from app.domain.planning.execution_plan import ExecutionPlan
from app.system import artifact_directory
from tests.sentences import Reviewed
from tests.worker.trainer.helpers import final_adapter, make_spec, run_trainer
from worker.trainer.memory import device_memory
from worker.trainer.memory.device_memory import DeviceMemory
from worker.trainer.runtime import autotune
from worker.trainer.runtime.autotune import with_fastest_dtype
from worker.trainer.runtime.device import times_float32
from worker.trainer.runtime.records import RecordWriter

CPU = torch.device("cpu")
DEFAULT = ExecutionPlan(row_tokens=1024, compute_dtype="bfloat16", threads=2)
FLOAT32 = DEFAULT.model_copy(update={"compute_dtype": "float32"})
EMULATED, NATIVE = 3.0, 0.25  # time of a bfloat16 product, in times of a float32 one

SetRatio = Callable[[float], list[torch.dtype]]


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture
def set_ratio(monkeypatch: pytest.MonkeyPatch) -> SetRatio:
    """Replace the measured ratio; return the dtypes that are measured from then on."""
    monkeypatch.setattr(autotune, "MIN_PARAMETERS", 0)

    def set_ratio(ratio: float) -> list[torch.dtype]:
        measured: list[torch.dtype] = []

        def times(dtype: torch.dtype) -> float:
            measured.append(dtype)
            return ratio

        monkeypatch.setattr(autotune, "times_float32", times)
        return measured

    return set_ratio


def autotune_plan(
    tiny: Path, examples: Path, tmp_path: Path, device: torch.device = CPU, **changes: Any
) -> tuple[ExecutionPlan, list[Any]]:
    records: list[Record] = []
    spec = make_spec(tiny, examples, **{"threads": None, "dtype_is_free": True, **changes})
    return with_fastest_dtype(spec, tmp_path, device, DEFAULT, RecordWriter(records.append, spec.run)), records


class TestDefault:
    @pytest.mark.parametrize("ratio", [NATIVE, 1.0, 1.49])
    def test_bfloat16_stays_unless_the_products_take_far_longer_because_other_operations_move_fewer_bytes(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio, ratio: float
    ) -> None:
        set_ratio(ratio)
        assert autotune_plan(tiny, examples, tmp_path)[0] == DEFAULT

    def test_bfloat16_stays_for_a_model_with_few_linear_parameters(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured = set_ratio(EMULATED)
        monkeypatch.setattr(autotune, "MIN_PARAMETERS", 10_000_000)
        assert (autotune_plan(tiny, examples, tmp_path), measured) == ((DEFAULT, []), [])

    def test_bfloat16_stays_on_a_gpu(self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio) -> None:
        measured = set_ratio(EMULATED)
        assert autotune_plan(tiny, examples, tmp_path, torch.device("cuda")) == (DEFAULT, [])
        assert measured == []

    def test_bfloat16_stays_if_the_measurement_fails_and_the_error_is_logged(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        def broken(dtype: torch.dtype) -> float:
            raise RuntimeError("no primitive")

        set_ratio(EMULATED)
        monkeypatch.setattr(autotune, "times_float32", broken)
        assert autotune_plan(tiny, examples, tmp_path) == (DEFAULT, [])
        assert "no primitive" in capsys.readouterr().err


class TestRequestedValues:
    def test_a_requested_dtype_is_not_measured(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio
    ) -> None:
        measured = set_ratio(EMULATED)
        assert autotune_plan(tiny, examples, tmp_path, dtype_is_free=False) == (DEFAULT, [])
        assert measured == []

    def test_sixteen_bit_lora_computes_in_sixteen_bits(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio
    ) -> None:
        set_ratio(EMULATED)
        assert autotune_plan(tiny, examples, tmp_path, quantization=None)[0] == DEFAULT


class TestFloat32:
    @pytest.mark.parametrize("threads", [None, 2])
    def test_float32_is_chosen_if_the_processor_emulates_bfloat16(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio, threads: int | None, reviewed: Reviewed
    ) -> None:
        set_ratio(EMULATED)
        plan, (message,) = autotune_plan(tiny, examples, tmp_path, threads=threads)
        assert plan == FLOAT32
        reviewed(message.message)
        assert (message.data["times_float32"], message.data["compute_dtype"]) == (3.0, "float32")
        assert 0 <= message.data["seconds"] < 60

    def test_float32_is_not_chosen_if_it_does_not_fit_into_memory(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_ratio(EMULATED)
        monkeypatch.setattr(device_memory, "measure", lambda _: DeviceMemory(100_000_000, 50_000_000))
        plan, (message,) = autotune_plan(tiny, examples, tmp_path)
        assert plan == DEFAULT
        assert "more memory" in message.message

    def test_float32_is_not_chosen_after_a_kill_for_memory(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio
    ) -> None:
        set_ratio(EMULATED)
        assert autotune_plan(tiny, examples, tmp_path, out_of_memory_kills=1)[0] == DEFAULT


class TestSideEffects:
    def test_weights_and_random_states_stay_unchanged(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The adapter equals that of a run that requests float32, so that nothing is measured."""
        set_ratio(EMULATED)
        ratios: list[float] = []

        def both(dtype: torch.dtype) -> float:
            ratios.append(times_float32(dtype))
            return EMULATED

        monkeypatch.setattr(autotune, "times_float32", both)
        before, python = torch.get_rng_state(), random.getstate()
        free = make_spec(tiny, examples, dropout=0.2, dtype_is_free=True)
        asked = make_spec(tiny, examples, dropout=0.2, quantization={"compute_dtype": "float32"})
        logs = {name: run_trainer(spec, tmp_path / name)[1] for name, spec in (("free", free), ("asked", asked))}
        assert ratios[0] > 0
        assert torch.equal(torch.get_rng_state(), before)
        assert random.getstate() == python
        manifests = [artifact_directory.verify(tmp_path / name / log.last.directory) for name, log in logs.items()]
        assert manifests[0]["quantization"] == manifests[1]["quantization"]
        assert {log.of(Started)[0].compute_dtype for log in logs.values()} == {"float32"}
        one, other = (final_adapter(log, tmp_path / name) for name, log in logs.items())
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_a_later_attempt_keeps_the_choice_of_the_first(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio
    ) -> None:
        changes: dict[str, Any] = {"dtype_is_free": True, "dropout": 0.2, "n_epochs": 2}
        set_ratio(EMULATED)
        _, uninterrupted = run_trainer(make_spec(tiny, examples, **changes), tmp_path / "whole")
        _, first = run_trainer(make_spec(tiny, examples, **changes), tmp_path / "first", stop_at=(3, Command.DRAIN))
        snapshot = tmp_path / "first" / first.of(SnapshotSaved)[-1].directory

        measured = set_ratio(NATIVE)
        _, second = run_trainer(make_spec(tiny, examples, resume_from=snapshot, **changes), tmp_path / "second")
        assert measured == []
        started = second.of(Started)[0]
        assert (started.start_step, started.compute_dtype) == (3, "float32")
        assert not [each for each in second.of(Message) if each.message.startswith("CPU autotuning")]
        one, other = final_adapter(uninterrupted, tmp_path / "whole"), final_adapter(second, tmp_path / "second")
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_the_memory_plan_uses_the_chosen_dtype(
        self, tiny: Path, examples: Path, tmp_path: Path, set_ratio: SetRatio
    ) -> None:
        plans = []
        for name, ratio in (("narrow", NATIVE), ("wide", EMULATED)):
            set_ratio(ratio)
            spec = make_spec(tiny, examples, max_steps=1, dtype_is_free=True)
            plans.append(run_trainer(spec, tmp_path / name)[1].of(Planned)[0])
        assert plans[1].components["cache"] == 2 * plans[0].components["cache"] > 0
