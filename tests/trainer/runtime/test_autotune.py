"""CPU autotuning: the default dtype stays unless float32 is clearly faster; requested values never change.

The tests replace the measured ratio, so that they are independent of the machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from app.domain.jobs.events import Command, Message, Planned, Record, Started
from app.domain.planning.execution_plan import ExecutionPlan
from app.system import artifact_directory
from tests.sentences import Reviewed
from tests.trainer.helpers import Trainings, assert_same_adapter
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


def autotune_plan(train: Trainings, device: torch.device = CPU, **changes: Any) -> tuple[ExecutionPlan, list[Any]]:
    records: list[Record] = []
    spec = train.spec(**{"threads": None, "dtype_is_free": True, "quantization": {}, **changes})
    return with_fastest_dtype(spec, train.directory, device, DEFAULT, RecordWriter(records.append, spec.run)), records


class TestDefault:
    @pytest.mark.parametrize("ratio", [NATIVE, 1.49])
    def test_bfloat16_stays_unless_the_products_take_far_longer_because_other_operations_move_fewer_bytes(
        self, train: Trainings, set_ratio: SetRatio, ratio: float
    ) -> None:
        set_ratio(ratio)
        assert autotune_plan(train)[0] == DEFAULT

    @pytest.mark.parametrize(
        ("min_parameters", "device", "changes"),
        [
            (10_000_000, "cpu", {}),  # few linear parameters
            (0, "cuda", {}),
            (0, "cpu", {"dtype_is_free": False}),
        ],
    )
    def test_nothing_is_measured_for_a_small_model_a_gpu_or_a_requested_dtype(
        self, train: Trainings, set_ratio: SetRatio, monkeypatch: pytest.MonkeyPatch,
        min_parameters: int, device: str, changes: dict[str, Any],
    ) -> None:  # fmt: skip
        measured = set_ratio(EMULATED)
        monkeypatch.setattr(autotune, "MIN_PARAMETERS", min_parameters)
        assert autotune_plan(train, torch.device(device), **changes) == (DEFAULT, [])
        assert measured == []

    @pytest.mark.parametrize("changes", [{"quantization": None}, {"out_of_memory_kills": 1}])
    def test_bfloat16_stays_with_16_bit_lora_and_after_a_kill_for_memory(
        self, train: Trainings, set_ratio: SetRatio, changes: dict[str, Any]
    ) -> None:
        set_ratio(EMULATED)
        assert autotune_plan(train, **changes)[0] == DEFAULT

    def test_bfloat16_stays_if_the_measurement_fails_and_the_error_is_logged(
        self, train: Trainings, set_ratio: SetRatio, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        def broken(dtype: torch.dtype) -> float:
            raise RuntimeError("no primitive")

        set_ratio(EMULATED)
        monkeypatch.setattr(autotune, "times_float32", broken)
        assert autotune_plan(train) == (DEFAULT, [])
        assert "no primitive" in capsys.readouterr().err


class TestFloat32:
    @pytest.mark.parametrize("threads", [None, 2])
    def test_float32_is_chosen_if_the_processor_emulates_bfloat16(
        self, train: Trainings, set_ratio: SetRatio, threads: int | None, reviewed: Reviewed
    ) -> None:
        set_ratio(EMULATED)
        plan, (message,) = autotune_plan(train, threads=threads)
        assert plan == FLOAT32
        reviewed(message.message)
        assert (message.data["times_float32"], message.data["compute_dtype"]) == (3.0, "float32")
        assert 0 <= message.data["seconds"] < 60

    def test_float32_is_not_chosen_if_it_does_not_fit_into_memory(
        self, train: Trainings, set_ratio: SetRatio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_ratio(EMULATED)
        monkeypatch.setattr(device_memory, "measure", lambda _: DeviceMemory(100_000_000, 50_000_000))
        plan, (message,) = autotune_plan(train)
        assert plan == DEFAULT
        assert "more memory" in message.message


class TestSideEffects:
    def test_weights_and_random_states_stay_unchanged(
        self, train: Trainings, set_ratio: SetRatio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The adapter equals that of a run that requests float32, so that nothing is measured."""
        set_ratio(EMULATED)
        ratios: list[float] = []

        def both(dtype: torch.dtype) -> float:
            ratios.append(times_float32(dtype))
            return EMULATED

        monkeypatch.setattr(autotune, "times_float32", both)
        before, python = torch.get_rng_state(), random.getstate()
        free = train(dropout=0.2, dtype_is_free=True, quantization={})
        asked = train(dropout=0.2)
        assert ratios[0] > 0
        assert torch.equal(torch.get_rng_state(), before)
        assert random.getstate() == python
        manifests = [artifact_directory.verify(log.result) for log in (free, asked)]
        assert manifests[0]["quantization"] == manifests[1]["quantization"]
        assert {log.of(Started)[0].compute_dtype for log in (free, asked)} == {"float32"}
        assert_same_adapter(free, asked)

    def test_a_later_attempt_keeps_the_choice_of_the_first(self, train: Trainings, set_ratio: SetRatio) -> None:
        changes: dict[str, Any] = {"dtype_is_free": True, "quantization": {}}
        set_ratio(EMULATED)
        first = train(stop_at=(1, Command.DRAIN), **changes)
        measured = set_ratio(NATIVE)
        second = train(resume_from=first.snapshot, stop_at=(2, Command.DRAIN), **changes)
        assert measured == []
        (started,) = second.of(Started)
        assert (started.start_step, started.compute_dtype) == (1, "float32")
        assert not [each for each in second.of(Message) if each.message.startswith("CPU autotuning")]

    def test_the_memory_plan_uses_the_chosen_dtype(self, train: Trainings, set_ratio: SetRatio) -> None:
        plans = []
        for ratio in (NATIVE, EMULATED):
            set_ratio(ratio)
            plans.append(train(max_steps=1, dtype_is_free=True, quantization={}).of(Planned)[0])
        assert plans[1].components["cache"] == 2 * plans[0].components["cache"] > 0
