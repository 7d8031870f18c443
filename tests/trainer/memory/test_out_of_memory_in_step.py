from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.events import Command, Message, Metric, Planned, Probed, SnapshotSaved
from app.domain.jobs.states import ExitCode, Reason
from app.domain.planning.execution_plan import ExecutionPlan
from app.domain.planning.memory import DeviceKind
from tests.sentences import Reviewed
from tests.trainer.helpers import (
    Attempt,
    Trainings,
    assert_same_adapter,
    load_tiny_base,
    make_one_step,
    prepare,
)
from worker.trainer.distributed import parallel
from worker.trainer.kernels.cpu.memory import CpuMemory, DeviceMemory
from worker.trainer.memory import placement
from worker.trainer.memory.out_of_memory import reduce_after_kills, reduce_plan, smallest_plan
from worker.trainer.objective import objective

SENTENCE = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"


class Shortage:
    """Raises out of memory if `is_short(tokens of the batch, number of batches before)`."""

    def __init__(self, is_short: Callable[[int, int], bool]) -> None:
        self.is_short = is_short
        self.rows: list[int] = []

    def __call__(self, base: Any, batch: Any, adapter: Any) -> torch.Tensor:
        from worker.trainer.model.base_model import hidden_states

        self.rows.append(len(batch.tokens_T))
        hidden_T_D = hidden_states(base, batch, adapter)  # dropout has been drawn by then
        if self.is_short(self.rows[-1], len(self.rows)):
            raise RuntimeError(SENTENCE)
        return hidden_T_D


Short = Callable[[Callable[[int, int], bool]], Shortage]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Short:
    def make(is_short: Callable[[int, int], bool]) -> Shortage:
        shortage = Shortage(is_short)
        monkeypatch.setattr(objective, "hidden_states", shortage)
        return shortage

    return make


@pytest.fixture(scope="module")
def plain(tiny: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """A run with enough memory."""
    return Trainings(tiny, examples, tmp_path_factory.mktemp("plain"))(dropout=0.2)


@pytest.mark.parametrize("times", [1, 4])
def test_a_step_that_ran_out_of_memory_is_repeated_unchanged_and_then_with_one_degree_less_each_time(
    train: Trainings, plain: Attempt, short: Short, reviewed: Reviewed, times: int
) -> None:
    """The third batch belongs to the second step, which restores the dropout generator."""
    short(lambda tokens, rows: 3 <= rows < 3 + times)
    log = train(dropout=0.2)
    assert log.code == ExitCode.DONE
    unchanged, *reductions = log.warnings
    reviewed(unchanged.message)
    assert len(reductions) == times - 1
    for event in reductions:
        before, after = event.data["before"], event.data["after"]
        changed = {name.removesuffix("_layers") for name in before if before[name] != after[name]}
        assert len(changed) == 1, changed
    assert log.losses == pytest.approx(plain.losses, rel=1e-6)
    assert_same_adapter(log, plain)  # each step is still one row here


@pytest.mark.parametrize(("owner", "name", "failing"), [(torch.optim.AdamW, "step", 1), (torch, "zeros_like", 6)])
def test_moments_are_allocated_before_the_first_update_and_both_are_repeated(
    train: Trainings, plain: Attempt, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, failing: int
) -> None:
    function, calls = getattr(owner, name), []

    def short(first: Any, **options: Any) -> Any:
        calls.append(first)
        if isinstance(first, torch.optim.AdamW):
            parameters = [parameter for group in first.param_groups for parameter in group["params"]]
            assert all(set(first.state[each]) == {"step", "exp_avg", "exp_avg_sq"} for each in parameters)
        if len(calls) == failing:
            raise RuntimeError(SENTENCE)
        return function(first, **options)

    monkeypatch.setattr(owner, name, short)
    log = train(dropout=0.2)
    assert log.code == ExitCode.DONE
    assert len(calls) > failing
    assert log.losses == pytest.approx(plain.losses, rel=1e-6)


def test_batches_are_halved_until_they_fit(train: Trainings, short: Short) -> None:
    shortage = short(lambda tokens, rows: tokens > 200)
    log = train(batch_size=6)
    assert (log.code, log.last.step) == (ExitCode.DONE, 4)
    assert max(shortage.rows[-8:]) <= 200
    (probed,) = log.of(Probed)
    assert probed.row_tokens <= 200
    assert all("within rounding" in message.message for message in log.warnings[1:])
    assert {message.level for message in log.of(Message)} == {"warn"}


def test_a_reduced_plan_is_saved_before_the_next_step_and_kept_without_a_probe(train: Trainings, short: Short) -> None:
    short(lambda tokens, rows: rows in (3, 4))  # the second step's
    log = train(stop_at=(3, Command.DRAIN), quantization={}, snapshot_interval_seconds=1e9)
    assert [saved.step for saved in log.of(SnapshotSaved)] == [0, 2, 3]
    assert log.of(Planned)[0].mode.cache_weights
    assert not log.choices["cache_weights"]
    again = train(resume_from=log.snapshot, quantization={})
    assert (again.code, again.of(Planned), again.of(Probed)) == (ExitCode.DONE, [], [])


def test_if_the_smallest_plan_does_not_fit_the_job_fails_and_names_the_parameter_to_change(
    train: Trainings, short: Short
) -> None:
    short(lambda tokens, rows: True)
    log = train()
    assert (log.code, log.failure.reason) == (ExitCode.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY)
    assert log.failure.param == "hyperparameters.context_length"
    assert not log.of(Metric)


def test_attempts_after_a_kill_plan_once_with_less_memory(train: Trainings) -> None:
    attempts = [train(stop_at=(1, Command.DRAIN))]
    for number in (1, 2):
        changes = {"resume_from": attempts[-1].snapshot, "out_of_memory_kills": 1}
        attempts.append(train(stop_at=(number + 1, Command.DRAIN), **changes))
    assert [len(log.of(Planned)) for log in attempts] == [1, 1, 0]
    before, after = (log.of(Planned)[0].memory_bytes for log in attempts[:2])
    assert after < 0.8 * before
    assert [saved.step for saved in attempts[1].of(SnapshotSaved)] == [1, 2]  # the new plan before its first step
    choices = attempts[1].choices
    assert (choices["validation_row_tokens"], choices["prompts_at_once"]) == (choices["row_tokens"] // 2, 2)
    assert reduce_after_kills(ExecutionPlan(**choices | {"prompts_at_once": 0}), 2).prompts_at_once == 0


def test_each_process_of_a_machine_plans_with_its_share_of_the_memory(
    train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, spec = load_tiny_base(train.base), train.spec()
    run = prepare(spec, base, tmp_path)
    space = DeviceMemory(10_000_000_000, 1_000_000_000)
    monkeypatch.setattr(CpuMemory, "measure", lambda _: space)
    assert placement.place(spec, base, run).device.memory_bytes == space.used_bytes + space.free_bytes
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    assert placement.place(spec, base, run).device.memory_bytes == space.used_bytes + space.free_bytes // 2


def test_all_processes_use_the_smallest_plan(train: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ExecutionPlan(row_tokens=256, recompute="everything")
    monkeypatch.setattr(parallel, "gather", lambda mine: [mine, theirs])  # the time of the start, too
    log = train()
    assert log.code == ExitCode.DONE
    assert {name: log.choices[name] for name in theirs.layout} == theirs.layout


class TestUnallocatedBytes:
    def test_restored_moments_do_not_count(self, train: Trainings, tmp_path: Path) -> None:
        base = load_tiny_base(train.base)
        run = prepare(train.spec(), base, tmp_path)
        trained = sum(parameter.numel() for parameter in run.parameters)
        assert placement.unallocated_bytes(run) == 12 * trained
        make_one_step(base, run)
        assert placement.unallocated_bytes(run) == 4 * trained


class TestSmallestPlan:
    def test_each_field_has_the_value_that_takes_the_least_memory(self) -> None:
        plans = [
            ExecutionPlan(row_tokens=512, recompute="layers", recompute_layers=3, cache_weights=True),
            ExecutionPlan(row_tokens=1024),
        ]
        assert smallest_plan(plans) == ExecutionPlan(row_tokens=512, recompute="layers", recompute_layers=3)
        plans.append(ExecutionPlan(row_tokens=2048, recompute="everything"))
        assert smallest_plan(plans) == ExecutionPlan(row_tokens=512, recompute="everything")
        assert smallest_plan(plans[:1]) == plans[0]


LONG = {"largest_tokens": 5000, "longest_document": 5000}


class TestReducePlan:
    def plans_below(self, plan: ExecutionPlan, kind: DeviceKind = "cuda", **changes: int) -> list[ExecutionPlan]:
        sizes = {"largest_tokens": 8192, "longest_document": 300, "layers": 32} | changes
        plans = [plan]
        while (after := reduce_plan(plans[-1], kind=kind, **sizes)) is not None:
            plans.append(after)
        return plans[1:]

    def test_each_reduction_changes_one_thing_and_the_cheapest_is_first(self, reviewed: Reviewed) -> None:
        plans = self.plans_below(ExecutionPlan(row_tokens=8192, cache_weights=True))
        assert [(plan.row_tokens, plan.recompute, plan.recompute_layers, plan.cache_weights) for plan in plans[:4]] == [
            (8192, "nothing", 0, False), (8192, "elementwise", 0, False), (4096, "elementwise", 0, False),
            (4096, "layers", 8, False),
        ]  # fmt: skip
        for plan in plans[:4]:
            reviewed(str(plan))
        assert plans[-1] == ExecutionPlan(row_tokens=300, recompute="everything", offload=True)

    @pytest.mark.parametrize(
        ("plan", "kind", "changes", "field", "values"),
        [
            ({"recompute": "everything"}, "cuda", {}, "offload", [True]),
            ({"recompute": "everything"}, "cpu", {}, "offload", []),
            ({"recompute": "everything", "row_tokens": 5000}, "cpu", LONG, "mlp_chunk_tokens", [4096, 1024, 512]),
            ({"recompute": "everything", "row_tokens": 5000}, "cuda", LONG, "mlp_chunk_tokens", [0, 4096, 1024, 512]),
            ({"recompute": "everything", "row_tokens": 4000}, "cpu", LONG, "mlp_chunk_tokens", [1024, 512]),
            ({"recompute": "everything", "row_tokens": 5000}, "cpu", LONG | {"can_tile": False}, "offload", []),
            ({"recompute": "layers", "recompute_layers": 3}, "cpu", {}, "recompute_layers", [11, 19, 27, 0]),
            # half of 8,192 tokens would change nothing for a job whose largest batch has 700
            ({"row_tokens": 8192}, "cuda", {"layers": 0, "largest_tokens": 700}, "row_tokens", [350, 300]),
            ({"row_tokens": 512}, "cuda", {"layers": 0}, "recompute", ["nothing"]),  # layers are not known
            ({"row_tokens": 128, "recompute": "everything"}, "cpu", {}, "row_tokens", []),  # never longer
        ],
    )
    def test_what_is_reduced_next(
        self, plan: dict[str, Any], kind: DeviceKind, changes: dict[str, int], field: str, values: list[object]
    ) -> None:
        plans = self.plans_below(ExecutionPlan(**{"row_tokens": 300} | plan), kind, **changes)
        assert [getattr(each, field) for each in plans] == values

    def test_the_inputs_of_the_layers_stay_without_host_memory(self) -> None:
        plan = ExecutionPlan(row_tokens=300, recompute="everything")
        assert reduce_plan(plan, 300, 300, 32, "cuda", can_offload=False) is None
