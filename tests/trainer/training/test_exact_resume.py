"""Stopped or killed at any step, in any epoch: the result equals that of an uninterrupted run, to the bit.

With everything on that has a state: dropout, validation at every step, early stopping, the best adapter promoted. The
validation file contradicts the training file, so its loss falls for four steps and rises for four: the run stops after
eight of sixteen, and its result is the adapter of step 4, which the files of a later attempt do not have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.domain.jobs.events import (
    CheckpointSaved,
    Command,
    Message,
    Metric,
    Record,
    SnapshotSaved,
    Started,
)
from app.domain.jobs.spec import TrainerSpec
from app.domain.jobs.states import ExitCode
from app.system import artifact_directory
from tests.tiny import make_tiny_base
from tests.trainer.helpers import (
    Attempt,
    RecordLog,
    Trainings,
    float32_spec,
    set_row_tokens,
    slow_but,
    write_answers,
)
from worker.trainer.runtime.process import StopRequests
from worker.trainer.training import run as program
from worker.trainer.training import shared_work
from worker.trainer.training.run import run

STEPS, BEST = 8, 4
SOME_STEPS = (1, BEST, BEST + 1, STEPS)  # the others repeat a step within an epoch, far from the best
SNAPSHOTS = Path("runs/run-a/snapshots")
CHANGES: dict[str, Any] = {
    "n_epochs": 4, "batch_size": 4, "dropout": 0.2, "eval_steps": 1, "early_stopping": {"patience": 4},
    "promote_best": True, "snapshot_interval_seconds": 0,
}  # fmt: skip


class Killed(BaseException):
    """Stands for SIGKILL within one process: no handler catches it, nothing is saved."""


Spec = Callable[..., TrainerSpec]


@pytest.fixture(scope="module")
def spec(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Spec:
    at = tmp_path_factory.mktemp("contrary")
    yes, no = write_answers(at / "yes.jsonl", 16, "yes"), write_answers(at / "no.jsonl", 4, "no")
    return partial(float32_spec, tiny, yes, validation_file=no, **CHANGES)


@pytest.fixture(scope="module")
def whole(tiny: Path, examples: Path, spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """The uninterrupted run."""
    log = Trainings(tiny, examples, tmp_path_factory.mktemp("whole")).run(spec())
    assert log.code == ExitCode.DONE
    assert [metric.step for metric in log.of(Metric)] == list(range(1, STEPS + 1))
    assert log.last.step == BEST
    return log


def killed_at(step: int, spec: TrainerSpec, workdir: Path) -> None:
    """Raise while that step is reported, before its snapshot is saved."""

    def kill(record: Record) -> None:
        if isinstance(record, Metric) and record.step == step:
            raise Killed

    with pytest.raises(Killed):
        run(spec, workdir, RecordLog(kill), StopRequests("run-a"))


def assert_same_result(one: Attempt, other: Attempt) -> None:
    """The files of the adapter, the manifest with its metrics, and the records of the steps and of the end."""
    assert artifact_directory.verify(one.result) == artifact_directory.verify(other.result)
    assert (one.last.step, one.last.trained_tokens) == (other.last.step, other.last.trained_tokens)
    assert seen(other) == seen(one)[other.of(Started)[0].start_step :]
    assert [message.message for message in other.of(Message)][-2:] == [m.message for m in one.of(Message)]


def seen(log: RecordLog) -> list[Any]:
    return [(each.step, each.train_loss, each.full_valid_loss, each.learning_rate) for each in log.of(Metric)]


@pytest.mark.parametrize("step", slow_but([BEST + 1], range(1, STEPS + 1), SOME_STEPS))
def test_a_run_that_is_killed_at_a_step_resumes_exactly(
    spec: Spec, train: Trainings, whole: Attempt, tmp_path: Path, step: int
) -> None:
    killed_at(step, spec(), tmp_path / "first")
    again = train.run(spec(resume_from=tmp_path / "first" / SNAPSHOTS))
    assert again.of(Started)[0].start_step == step - 1
    assert_same_result(whole, again)


@pytest.mark.extended("exact resume at more steps")
def test_a_run_that_is_killed_at_every_step_resumes_exactly(
    spec: Spec, train: Trainings, whole: Attempt, tmp_path: Path
) -> None:
    resumed = spec(resume_from=SNAPSHOTS)
    for step in range(1, STEPS + 1):
        killed_at(step, resumed, tmp_path)
    assert_same_result(whole, train.run(resumed, tmp_path))


def test_a_run_that_is_killed_while_its_adapter_is_checked_resumes_exactly(
    spec: Spec, train: Trainings, whole: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its moments are free by then."""

    def kill(_base: Any, killed: Any, _directory: Path) -> None:
        assert not killed.optimizer.state
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shared_work, "verify_adapter", kill)
        with pytest.raises(Killed):
            run(spec(), tmp_path / "first", RecordLog(), StopRequests("run-a"))
    assert_same_result(whole, train.run(spec(resume_from=tmp_path / "first" / SNAPSHOTS)))


def test_a_pause_while_the_best_adapter_is_in_place_saves_the_last_one(
    spec: Spec, train: Trainings, whole: Attempt, tmp_path: Path
) -> None:
    stops = StopRequests("run-a")

    def pause(record: Record) -> None:
        if isinstance(record, CheckpointSaved) and record.final:
            stops.add(Command.PAUSE)

    first = Attempt(tmp_path / "first", pause)
    assert run(spec(snapshot_interval_seconds=3600), first.workdir, first, stops) == ExitCode.PAUSED
    assert first.of(SnapshotSaved)[-1].step == STEPS
    state = load_file(first.snapshot / "state.safetensors")
    assert not any(name.startswith("optimizer/") for name in state)  # they are free before the check
    names = [name.removeprefix("best/") for name in state if name.startswith("best/")]
    assert not any(torch.equal(state[f"best/{name}"], state[f"adapter/{name}"]) for name in names)
    assert_same_result(whole, train.run(spec(resume_from=first.snapshot)))


def test_an_attempt_on_another_machine_keeps_the_plan_of_the_first(
    spec: Spec, train: Trainings, whole: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(3, spec(), tmp_path / "first")
    set_row_tokens(monkeypatch, 64)
    monkeypatch.setattr(program, "choose_threads", lambda: 2)
    monkeypatch.setattr(program, "choose_compute_dtype", lambda *_: torch.bfloat16)
    log = train.run(spec(resume_from=tmp_path / "first" / SNAPSHOTS, threads=None))
    assert (log.of(Started)[0].threads, log.of(Started)[0].compute_dtype) == (1, "float32")
    assert log.choices["row_tokens"] == whole.choices["row_tokens"] != 64
    assert_same_result(whole, log)


def test_a_run_that_is_killed_before_the_first_snapshot_keeps_its_plan(
    spec: Spec, train: Trainings, whole: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(3, spec(snapshot_interval_seconds=3600), tmp_path / "first")
    set_row_tokens(monkeypatch, 64)
    log = train.run(spec(resume_from=tmp_path / "first" / SNAPSHOTS))
    assert log.of(Started)[0].start_step == 0
    assert log.choices["row_tokens"] == whole.choices["row_tokens"] != 64
    assert_same_result(whole, log)


def test_a_template_that_prints_the_date_prints_that_of_the_first_attempt(train: Trainings, tmp_path: Path) -> None:
    dated = make_tiny_base(tmp_path / "dated")
    template = dated / "chat_template.jinja"
    template.write_text("{{ strftime_now('%H:%M:%S.%f') }}" + template.read_text())
    first = train(tmp_path, base=dated, snapshot_interval_seconds=0)
    second = train(tmp_path, base=dated, snapshot_interval_seconds=0, resume_from=SNAPSHOTS / "step-000005")
    assert second.of(Started)[0].start_step == 5
    assert seen(second) == seen(first)[5:]
