"""Stopped or killed at any step, in any epoch: the result equals that of an uninterrupted run, to the bit.

With everything on that has a state: dropout, validation at every step, early stopping, the best adapter promoted. The
validation file contradicts the training file, so its loss falls for four steps and rises for four: the run stops after
eight of sixteen, and its result is the adapter of step 4, which the files of a later attempt do not have.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.domain.jobs.events import (
    CheckpointSaved,
    Command,
    Done,
    Message,
    Metric,
    Record,
    SnapshotSaved,
    Started,
    parse_record,
)
from app.domain.jobs.spec import TrainerSpec
from app.domain.jobs.states import ExitCode
from app.system import artifact_directory
from tests.tiny import make_tiny_base
from tests.worker.trainer.helpers import RecordLog, make_spec, run_trainer, set_row_tokens, slow_but, write_answers
from worker.trainer.runtime.process import StopRequests
from worker.trainer.training import run as program
from worker.trainer.training.run import run

STEPS, BEST = 8, 4
SOME_STEPS = (1, BEST, BEST + 1, STEPS)  # the others repeat a step within an epoch, far from the best
ROOT = Path(__file__).parents[4]
SNAPSHOTS = Path("runs/run-a/snapshots")
CHANGES: dict[str, Any] = {
    "n_epochs": 4, "batch_size": 4, "dropout": 0.2, "eval_steps": 1, "early_stopping": {"patience": 4},
    "promote_best": True, "snapshot_interval_seconds": 0,
}  # fmt: skip


class Killed(BaseException):
    """Stands for SIGKILL within one process: no handler catches it, nothing is saved."""


@dataclass(frozen=True)
class Setup:
    base: Path
    training_file: Path
    validation_file: Path

    def spec(self, **changes: Any) -> TrainerSpec:
        return make_spec(
            self.base, self.training_file, **{"validation_file": self.validation_file, **CHANGES, **changes}
        )


@pytest.fixture(scope="module")
def setup(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    at = tmp_path_factory.mktemp("contrary")
    return Setup(tiny, write_answers(at / "yes.jsonl", 16, "yes"), write_answers(at / "no.jsonl", 4, "no"))


@pytest.fixture(scope="module")
def whole(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordLog, Path]:
    """The uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    code, log = run_trainer(setup.spec(), workdir)
    assert code == ExitCode.DONE
    assert [metric.step for metric in log.of(Metric)] == list(range(1, STEPS + 1))
    assert log.last.step == BEST
    return log, workdir


def killed_at(step: int, spec: TrainerSpec, workdir: Path) -> None:
    """Raise while that step is reported, before its snapshot is saved."""

    def kill(record: Record) -> None:
        if isinstance(record, Metric) and record.step == step:
            raise Killed

    with pytest.raises(Killed):
        run(spec, workdir, RecordLog(kill), StopRequests("run-a"))


def assert_same_result(one: tuple[RecordLog, Path], other: tuple[RecordLog, Path]) -> None:
    """Return the files of the adapter, the manifest with its metrics, and the records of the steps and of the end."""
    manifests = [artifact_directory.verify(workdir / log.last.directory) for log, workdir in (one, other)]
    assert manifests[0] == manifests[1]
    assert (one[0].last.step, one[0].last.trained_tokens) == (other[0].last.step, other[0].last.trained_tokens)
    first = other[0].of(Started)[0].start_step
    assert seen(other[0]) == seen(one[0])[first:]
    assert [message.message for message in other[0].of(Message)][-2:] == [m.message for m in one[0].of(Message)]


def seen(log: RecordLog) -> list[Any]:
    return [(each.step, each.train_loss, each.full_valid_loss, each.learning_rate) for each in log.of(Metric)]


class TestAnyStep:
    @pytest.mark.extended("exact resume at more steps")
    @pytest.mark.parametrize("step", slow_but(SOME_STEPS, range(1, STEPS + 1)))
    def test_stopped_at_a_step(self, setup: Setup, whole: tuple[RecordLog, Path], tmp_path: Path, step: int) -> None:
        code, log = run_trainer(setup.spec(), tmp_path / "first", stop_at=(step, Command.DRAIN))
        assert code == ExitCode.DRAINED
        snapshot = tmp_path / "first" / log.of(SnapshotSaved)[-1].directory
        _, again = run_trainer(setup.spec(resume_from=snapshot), tmp_path / "second")
        assert again.of(Started)[0].start_step == step
        assert_same_result(whole, (again, tmp_path / "second"))

    @pytest.mark.parametrize("step", slow_but([BEST + 1, STEPS], range(1, STEPS + 1), SOME_STEPS))
    def test_killed_at_a_step(self, setup: Setup, whole: tuple[RecordLog, Path], tmp_path: Path, step: int) -> None:
        killed_at(step, setup.spec(), tmp_path / "first")
        _, log = run_trainer(setup.spec(resume_from=tmp_path / "first" / SNAPSHOTS), tmp_path / "second")
        assert log.of(Started)[0].start_step == step - 1
        assert_same_result(whole, (log, tmp_path / "second"))

    @pytest.mark.extended("exact resume at more steps")
    def test_killed_at_every_step_in_one_work_directory(
        self, setup: Setup, whole: tuple[RecordLog, Path], tmp_path: Path
    ) -> None:
        spec = setup.spec(resume_from=SNAPSHOTS)
        for step in range(1, STEPS + 1):
            killed_at(step, spec, tmp_path)
        _, log = run_trainer(spec, tmp_path)
        assert_same_result(whole, (log, tmp_path))

    def test_paused_while_the_best_adapter_is_in_place(
        self, setup: Setup, whole: tuple[RecordLog, Path], tmp_path: Path
    ) -> None:
        """The snapshot has the last adapter, not the best one, which is in place during the check."""
        stops = StopRequests("run-a")

        def pause(record: Record) -> None:
            if isinstance(record, CheckpointSaved) and record.final:
                stops.add(Command.PAUSE)

        log = RecordLog(pause)
        assert run(setup.spec(snapshot_interval_seconds=3600), tmp_path / "first", log, stops) == ExitCode.PAUSED
        *_, saved = log.of(SnapshotSaved)
        assert saved.step == STEPS
        state = load_file(tmp_path / "first" / saved.directory / "state.safetensors")
        names = [name.removeprefix("best/") for name in state if name.startswith("best/")]
        assert not any(torch.equal(state[f"best/{name}"], state[f"adapter/{name}"]) for name in names)
        _, again = run_trainer(setup.spec(resume_from=tmp_path / "first" / saved.directory), tmp_path / "second")
        assert_same_result(whole, (again, tmp_path / "second"))

    @pytest.mark.slow
    @pytest.mark.timeout(240)
    def test_sigkill_of_the_process(self, setup: Setup, whole: tuple[RecordLog, Path], tmp_path: Path) -> None:
        (tmp_path / "spec.json").write_text(setup.spec(resume_from=SNAPSHOTS).model_dump_json())
        for step in (2, 5, STEPS):
            for record in records_of(tmp_path):
                if isinstance(record, Metric) and record.step >= step:
                    break  # closes the generator, which kills
        last = list(records_of(tmp_path))[-1]
        assert isinstance(last, Done)
        assert last.step == BEST
        log, workdir = whole
        weights = artifact_directory.verify(tmp_path / last.directory)["files"]["adapter_model.safetensors"]
        assert weights == artifact_directory.verify(workdir / log.last.directory)["files"]["adapter_model.safetensors"]


def records_of(workdir: Path) -> Iterator[Record]:
    """Yield the records of a trainer process; closing the generator kills the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.trainer", str(workdir)], cwd=ROOT,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            yield parse_record(line)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


class TestAnotherMachine:
    def test_the_plan_of_the_first_attempt_is_kept(
        self, setup: Setup, whole: tuple[RecordLog, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed_at(3, setup.spec(), tmp_path / "first")
        set_row_tokens(monkeypatch, 64)
        monkeypatch.setattr(program, "choose_threads", lambda: 2)
        monkeypatch.setattr(program, "choose_compute_dtype", lambda *_: torch.float32)
        spec = setup.spec(resume_from=tmp_path / "first" / SNAPSHOTS, threads=None)
        _, log = run_trainer(spec, tmp_path / "second")
        assert (log.of(Started)[0].threads, log.of(Started)[0].compute_dtype) == (1, "bfloat16")
        assert_same_result(whole, (log, tmp_path / "second"))

    def test_killed_before_the_first_snapshot_was_due(
        self, setup: Setup, whole: tuple[RecordLog, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed_at(3, setup.spec(snapshot_interval_seconds=3600), tmp_path / "first")
        set_row_tokens(monkeypatch, 64)
        spec = setup.spec(resume_from=tmp_path / "first" / SNAPSHOTS)
        _, log = run_trainer(spec, tmp_path / "second")
        assert log.of(Started)[0].start_step == 0
        assert_same_result(whole, (log, tmp_path / "second"))

    def test_a_template_that_prints_the_date_prints_that_of_the_first_attempt(
        self, setup: Setup, tmp_path: Path
    ) -> None:
        dated = make_tiny_base(tmp_path / "dated")
        template = dated / "chat_template.jinja"
        template.write_text("{{ strftime_now('%H:%M:%S.%f') }}" + template.read_text())
        spec = make_spec(dated, setup.training_file, snapshot_interval_seconds=0)
        _, first = run_trainer(spec, tmp_path)
        resumed = spec.run.model_copy(update={"resume_from": SNAPSHOTS / "step-000007"})
        _, second = run_trainer(spec.model_copy(update={"runs": (resumed,)}), tmp_path)
        assert second.of(Started)[0].start_step == 7
        assert seen(second) == seen(first)[7:]

    def test_without_the_saved_plan_the_result_would_differ(
        self, setup: Setup, whole: tuple[RecordLog, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_row_tokens(monkeypatch, 64)
        _, log = run_trainer(setup.spec(resume_from=SNAPSHOTS), tmp_path)
        assert seen(log) != seen(whole[0])
        assert log.of(Message)[0].message == "Starting from step 0: there is no snapshot to resume from"
