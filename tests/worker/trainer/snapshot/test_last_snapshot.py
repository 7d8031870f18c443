"""The last snapshot of an attempt, in its reserved space: at the end, at a stop, on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.artifacts.full_disk import RESERVED_SPACE_FILE, estimate_disk_space
from app.domain.jobs.events import CheckpointSaved, Command, Done, Message, Metric, SnapshotSaved, Started
from app.domain.jobs.spec import JobSpec, TrainerSpec
from app.domain.jobs.states import ExitCode, Reason
from app.system.model_files import read_catalog_entry
from tests.worker.trainer.helpers import RecordLog, failure, final_adapter, float32_spec, run_trainer
from worker.trainer.training import step_actions

STEPS = 6  # two epochs of three


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def reserve(workdir: Path) -> Path:
    workdir.mkdir()
    reserved = workdir / RESERVED_SPACE_FILE
    reserved.write_bytes(b"." * 1000)
    return workdir


@pytest.fixture
def full_when_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with space for a snapshot only after the reserved file is removed, and never for a checkpoint."""
    save = step_actions.save_snapshot

    def save_if_free(run: Any, *arguments: Any) -> Any:
        if run.step and (run.directory.parents[1] / RESERVED_SPACE_FILE).exists():
            no_space()
        return save(run, *arguments)

    monkeypatch.setattr(step_actions, "save_snapshot", save_if_free)
    monkeypatch.setattr(step_actions, "save_checkpoint", no_space)


def kept(log: RecordLog) -> tuple[int, bool]:
    last = log.of(SnapshotSaved)[-1]
    return last.step, last.final


class TestAtTheEnd:
    def test_it_is_saved_before_the_result_if_space_is_reserved(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        spec = float32_spec(tiny, examples)
        code, log = run_trainer(spec, reserve(tmp_path / "a"))
        assert (code, kept(log)) == (ExitCode.DONE, (STEPS, True))
        assert not (tmp_path / "a" / RESERVED_SPACE_FILE).exists()

        _, by_hand = run_trainer(spec, tmp_path / "b")
        assert kept(by_hand) == (0, False)

    def test_an_attempt_that_resumes_from_it_makes_no_step_and_has_the_same_adapter(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        changes = {"validation_file": examples, "promote_best": True, "dropout": 0.2}
        _, first = run_trainer(float32_spec(tiny, examples, **changes), reserve(tmp_path / "a"))
        snapshot = tmp_path / "a" / first.of(SnapshotSaved)[-1].directory
        code, again = run_trainer(
            float32_spec(tiny, examples, resume_from=snapshot, **changes), reserve(tmp_path / "b")
        )
        assert code == ExitCode.DONE
        assert (again.of(Started)[0].start_step, again.of(Metric)) == (STEPS, [])
        one, other = final_adapter(first, tmp_path / "a"), final_adapter(again, tmp_path / "b")
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("full_when_reserved")
class TestOnAFullDisk:
    def test_a_checkpoint_that_does_not_fit_ends_the_run_and_the_last_step_is_saved(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        _, log = run_trainer(float32_spec(tiny, examples), reserve(tmp_path / "a"))
        assert failure(log).reason == Reason.STORAGE_FULL
        assert (kept(log), len(log.of(Metric))) == ((3, True), 3)
        warnings = [message.message for message in log.of(Message) if message.level == "warn"]
        assert "The checkpoint of step 3 could not be saved: the disk is full." in warnings

    def test_so_does_a_snapshot(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        _, log = run_trainer(float32_spec(tiny, examples, snapshot_interval_seconds=0), reserve(tmp_path / "a"))
        assert failure(log).reason == Reason.STORAGE_FULL
        assert kept(log) == (1, True)

    def test_so_does_the_result(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        _, log = run_trainer(float32_spec(tiny, examples, n_epochs=1), reserve(tmp_path / "a"))
        assert failure(log).reason == Reason.STORAGE_FULL
        assert (kept(log), log.of(Done), log.of(CheckpointSaved)) == ((3, True), [], [])

    def test_a_pause_saves_its_step_although_the_checkpoint_does_not_fit(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        _, log = run_trainer(float32_spec(tiny, examples), reserve(tmp_path / "a"), stop_at=(2, Command.PAUSE))
        assert failure(log).reason == Reason.STORAGE_FULL
        assert kept(log) == (2, True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"r": 32},
        {"use_dora": True},
        {"promote_best": True},
        {"modules_to_save": ["embed_tokens", "norm"], "promote_best": True},
        {"rank_pattern": {"q_proj": 32}},
    ],
)
def test_the_reserved_space_is_enough_and_not_much_more(
    tiny: Path, examples: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    spec = float32_spec(tiny, examples, validation_file=examples, eval_steps=1, max_steps=2, **changes)
    code, log = run_trainer(spec, reserve(tmp_path / "a"))
    assert (code, kept(log)) == (ExitCode.DONE, (2, True))
    snapshot = tmp_path / "a" / log.of(SnapshotSaved)[-1].directory
    taken = sum(path.stat().st_blocks * 512 for path in snapshot.iterdir())
    planned = estimate_disk_space(read_catalog_entry(tiny), job_spec_of(spec), 0).snapshot_bytes
    assert taken < planned < 2 * taken + 700_000


def job_spec_of(spec: TrainerSpec) -> JobSpec:
    run = spec.run
    return JobSpec(
        base_model="tiny", lora=run.lora, quantization=spec.quantization, hyperparameters=run.hyperparameters, seed=1
    )
