"""The last snapshot of an attempt, in its reserved space: at the end, at a stop, on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from app.domain.artifacts.full_disk import RESERVED_SPACE_FILE, estimate_disk_space
from app.domain.jobs.events import CheckpointSaved, Command, Done, Metric, SnapshotSaved, Started
from app.domain.jobs.spec import JobSpec
from app.domain.jobs.states import ExitCode, Reason
from app.system.model_files import read_catalog_entry
from tests.trainer.helpers import RecordLog, Trainings, assert_same_adapter
from worker.trainer.training import run_files

STEPS = 6  # two epochs of three


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def reserve(workdir: Path) -> Path:
    workdir.mkdir()
    (workdir / RESERVED_SPACE_FILE).write_bytes(b"." * 1000)
    return workdir


@pytest.fixture
def full_when_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with space for a snapshot only after the reserved file is removed, and never for a checkpoint."""
    save = run_files.save_snapshot

    def save_if_free(run: Any, *arguments: Any) -> Any:
        if run.step and (run.directory.parents[1] / RESERVED_SPACE_FILE).exists():
            no_space()
        return save(run, *arguments)

    monkeypatch.setattr(run_files, "save_snapshot", save_if_free)
    monkeypatch.setattr(run_files, "save_checkpoint", no_space)


def kept(log: RecordLog) -> tuple[int, bool]:
    last = log.of(SnapshotSaved)[-1]
    return last.step, last.final


def test_the_last_step_is_saved_if_space_is_reserved(train: Trainings, tmp_path: Path) -> None:
    log = train(reserve(tmp_path / "a"))
    assert (log.code, kept(log)) == (ExitCode.DONE, (STEPS, True))
    assert not (tmp_path / "a" / RESERVED_SPACE_FILE).exists()
    assert kept(train()) == (0, False)


def test_an_attempt_that_resumes_from_the_last_step_makes_none_and_has_the_same_adapter(
    train: Trainings, tmp_path: Path
) -> None:
    changes = {"validation_file": train.training_file, "promote_best": True, "dropout": 0.2}
    first = train(reserve(tmp_path / "a"), **changes)
    again = train(reserve(tmp_path / "b"), resume_from=first.snapshot, **changes)
    assert (again.code, again.of(Started)[0].start_step, again.of(Metric)) == (ExitCode.DONE, STEPS, [])
    assert_same_adapter(again, first)


@pytest.mark.usefixtures("full_when_reserved")
@pytest.mark.parametrize(
    ("stop_at", "changes", "saved_step"),
    [
        pytest.param(None, {}, 3, id="checkpoint"),
        pytest.param(None, {"snapshot_interval_seconds": 0}, 1, id="snapshot"),
        pytest.param(None, {"n_epochs": 1}, 3, id="result"),
        pytest.param((2, Command.PAUSE), {}, 2, id="pause"),
    ],
)
def test_what_does_not_fit_on_the_disk_ends_the_run_and_its_step_is_saved(
    train: Trainings, tmp_path: Path, stop_at: Any, changes: dict[str, Any], saved_step: int
) -> None:
    log = train(reserve(tmp_path / "a"), stop_at, **changes)
    assert log.failure.reason == Reason.STORAGE_FULL
    assert (kept(log), len(log.of(Metric))) == ((saved_step, True), saved_step)
    assert (log.of(Done), log.of(CheckpointSaved)) == ([], [])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"r": 32},
        {"use_dora": True},
        {"modules_to_save": ["embed_tokens", "norm"], "promote_best": True},
        {"rank_pattern": {"q_proj": 32}},
    ],
)
def test_the_reserved_space_is_enough_and_not_much_more(
    train: Trainings, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes = {"validation_file": train.training_file, "eval_steps": 1, "max_steps": 2} | changes
    spec = train.spec(**changes)
    log = train.run(spec, reserve(tmp_path / "a"))
    assert (log.code, kept(log)) == (ExitCode.DONE, (2, True))
    taken = sum(path.stat().st_blocks * 512 for path in log.snapshot.iterdir())
    job = JobSpec(
        base_model="tiny", lora=spec.run.lora, quantization=spec.quantization,
        hyperparameters=spec.run.hyperparameters, seed=1,
    )  # fmt: skip
    planned = estimate_disk_space(read_catalog_entry(train.base), job, 0).snapshot_bytes
    assert taken < planned < 2 * taken + 700_000
