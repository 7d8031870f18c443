"""One job from its claim to its end, with a fake trainer; everything else is real."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db import files
from app.db.base_models import models
from app.db.engine import transaction
from app.db.tables import BaseModelRow, File
from app.services import base_models
from app.system.artifact_directory import verify
from tests.sentences import Reviewed
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import OWNER, StepLog, WorkerHarness
from worker.jobs.supervisor import JobSupervisor
from worker.reconciler import cleanup


class TestSuccess:
    def test_the_job_has_its_row_its_events_its_results_file_and_no_snapshots(
        self, harness: WorkerHarness, reviewed: Reviewed
    ) -> None:
        job = harness.create_queued_job(suffix="demo")
        assert harness.run_next_job(TrainerPlan(steps=2, validation=True, snapshot_every=1))
        done = harness.job(job)
        assert (done.state, done.phase, done.reason, done.lease_owner) == ("succeeded", None, "done", None)
        assert done.trained_tokens == 200
        assert done.fine_tuned_model is not None
        assert done.fine_tuned_model.startswith("ft:tiny:tunery:demo:")
        assert done.progress is not None
        assert abs(done.progress.pop("estimated_finish") - time.time()) < 20
        of_last_step = {"total_steps": 2, "tokens_per_second": 1000.0, "eta_seconds": 0.1}
        assert done.progress == {"step": 2, "epoch": 1.0, **of_last_step}

        events = harness.events(job)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert events[3].message == "Fine-tuning job started"
        reviewed("\n".join(event.message for event in events[4:]).replace(done.fine_tuned_model, "MODEL"))
        assert next(event.data for event in events if event.type == "metrics") == of_last_step | {
            "step": 1,
            "train_loss": 1.0,
            "train_mean_token_accuracy": 0.75,
            "valid_loss": 2.0,
            "valid_mean_token_accuracy": 0.5,
            "learning_rate": 0.001,
            "grad_norm": 0.5,
            "epoch": 0.5,
            "num_tokens": 100,
            "labelled_tokens": 30,
        }

        (file_id,) = done.result_file_ids
        assert harness.content(file_id).decode().splitlines() == [
            "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,train_mean_token_accuracy,"
            "full_valid_loss,full_valid_mean_token_accuracy,learning_rate,grad_norm,epoch,num_tokens",
            "1,1.0,0.75,2.0,0.5,0.75,,,0.001,0.5,0.5,100",
            "2,0.5,0.75,1.0,0.5,0.75,,,0.001,0.5,1.0,200",
        ]

        assert (harness.snapshots(job), harness.stored_files("snapshots")) == ([], [])
        directory = harness.resources.settings.work_dir / job.id / "attempt-2"
        assert [path.name for path in directory.iterdir()] in ([], ["trainer.log"])

    def test_the_last_checkpoint_has_the_models_name_and_the_others_their_step(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=4, checkpoint_every=1))
        done = harness.job(job)
        kept = harness.checkpoints(job)
        with transaction(harness.sessions) as session:
            tuned = [model.id for model in models.list_usable(session, job.project_id)]
            rows = [row for row in session.scalars(select(File).where(File.job_id == job.id)) if row.deleted_at is None]
        assert [checkpoint.step_number for checkpoint in kept] == [4, 3, 2]
        stored = {row.storage_key.split("/")[5] for row in rows if "checkpoints" in row.storage_key}
        assert stored == {"step-000002", "step-000003", "step-000004-result"}
        assert kept[0].name == done.fine_tuned_model
        assert [c.name.rpartition(":")[2] for c in kept[1:]] == ["ckpt-step-3", "ckpt-step-2"]
        assert sorted(tuned) == sorted(checkpoint.name for checkpoint in kept)

    def test_the_best_checkpoint_is_never_retired_and_is_listed_first_with_its_own_files_when_it_is_the_result(
        self, harness: WorkerHarness
    ) -> None:
        job, crash = harness.create_queued_job(), {"2": {"6": "signal:SIGKILL"}}
        plan = TrainerPlan(steps=6, checkpoint_every=1, full_losses=(3.0, 1.0, 2.0, 2.5, 2.6, 2.7), faults=crash)
        harness.run_next_job(plan)
        assert [checkpoint.step_number for checkpoint in harness.checkpoints(job)] == [5, 4, 2]
        harness.run_next_job(plan)
        done = harness.job(job)
        assert (done.state, done.progress["step"]) == ("succeeded", 6)
        first, *others = harness.checkpoints(job)
        assert (first.name, first.step_number, first.metrics["full_valid_loss"]) == (done.fine_tuned_model, 2, 1.0)
        assert first.archive_file_id == done.adapter_archive_file_id
        assert [checkpoint.step_number for checkpoint in others] == [6, 5]
        weights = next(harness.file(id) for id in first.file_ids if harness.file(id).filename.endswith(".safetensors"))
        assert harness.content(weights.id).startswith(b"weights of step 2 ")
        cleanup.purge_files(harness.resources)
        assert harness.content(weights.id).startswith(b"weights of step 2 ")
        assert len(harness.stored_files("step-000002/")) == 0

    def test_the_adapter_is_ordinary_files_and_one_archive_with_its_hash_in_the_job(
        self, harness: WorkerHarness, tmp_path: Path
    ) -> None:
        job = harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=2))
        done = harness.job(job)
        assert done.adapter_archive_file_id is not None
        archive = harness.file(done.adapter_archive_file_id)
        assert (archive.sha256, archive.bytes) == (done.adapter_sha256, done.adapter_bytes)
        assert hashlib.sha256(harness.content(archive.id)).hexdigest() == archive.sha256
        assert not harness.stored_files("adapter.tar"), "the archive is assembled when it is read"
        with tarfile.open(fileobj=io.BytesIO(harness.content(archive.id))) as packed:
            packed.extractall(tmp_path, filter="data")
        manifest = verify(tmp_path / "adapter")
        (checkpoint,) = harness.checkpoints(job)
        assert checkpoint.manifest == manifest
        names = [harness.file(file_id).filename for file_id in checkpoint.file_ids]
        assert names == ["MANIFEST.json", "README.md", "adapter_config.json", "adapter_model.safetensors"]


class TestTrainerErrors:
    @pytest.mark.parametrize(
        ("fault", "code"), [("failed:non_finite_loss:64", "non_finite_loss"), ("exit:71", "out_of_memory")]
    )
    def test_a_permanent_failure_fails_the_job(self, harness: WorkerHarness, fault: str, code: str) -> None:
        job = harness.create_queued_job()
        harness.run_next_job(TrainerPlan(faults={"*": {"2": fault}}))
        failed = harness.job(job)
        assert (failed.state, failed.error_code, failed.reason) == ("failed", code, code)
        if fault.startswith("failed"):
            assert str(failed.error_message).endswith(code)
            assert failed.error_param == "model"
        assert harness.events(job)[-1].level == "error"

    @pytest.mark.parametrize("fault", ["signal:SIGKILL", "exit:0"])
    def test_a_crash_is_retried_from_the_newest_snapshot(
        self, harness: WorkerHarness, step_log: StepLog, fault: str
    ) -> None:
        job = harness.create_queued_job()
        plan = TrainerPlan(steps=5, snapshot_every=2, step_log=str(step_log.path), faults={"2": {"4": fault}})
        harness.run_next_job(plan)
        assert (harness.job(job).state, harness.job(job).crash_streak) == ("queued", 1)
        harness.run_next_job(plan)
        assert harness.job(job).state == "succeeded"
        assert step_log.steps() == {"2": [1, 2, 3], "3": [3, 4, 5]}
        assert [row["step"] for row in harness.metrics(job)] == [1, 2, 3, 4, 5]

    def test_progress_resets_the_crash_streak(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        faults = {str(attempt): {str(2 * attempt): "signal:SIGKILL"} for attempt in (2, 3, 4, 5)}
        plan = TrainerPlan(steps=11, snapshot_every=1, faults=faults)
        while harness.run_next_job(plan):
            pass
        done = harness.job(job)
        assert (done.state, done.train_attempts, done.crash_streak) == ("succeeded", 5, 0)

    def test_a_silent_trainer_is_killed_and_the_job_is_retried(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        harness.resources.settings.stall_seconds = 0.7
        plan = TrainerPlan(steps=3, snapshot_every=1, faults={"2": {"2": "hang"}})
        harness.run_next_job(plan)
        assert harness.attempts(job)[-1].reason == "stalled"
        harness.resources.settings.stall_seconds = 15.0  # a slow start is no stall
        harness.run_next_job(plan)
        assert harness.job(job).state == "succeeded"

    def test_a_trainer_that_closes_its_output_without_exiting_is_killed(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        harness.resources.settings.stop_grace_seconds = 0.3
        harness.run_next_job(TrainerPlan(faults={"*": {"2": "hang:close"}}))
        assert harness.attempts(job)[-1].reason == "trainer_crashed"

    def test_values_that_postgresql_refuses_are_replaced(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        message = '{"kind": "message", "run_id": "%s", "message": "a\\u0000b", "data": {"x": NaN, "\\u0000": [1e999]}}'
        harness.run_next_job(TrainerPlan(steps=2, faults={"*": {"1": f"print:{message % job.id}"}}))
        event = next(event for event in harness.events(job) if event.message.startswith("a"))
        assert (event.message, event.data) == ("a\ufffdb", {"x": None, "\ufffd": [None]})
        assert harness.job(job).state == "succeeded"

    def test_a_directory_outside_its_own_is_never_read(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        harness.run_next_job(TrainerPlan(steps=3, faults={"*": {"2": "escape"}}))
        assert harness.job(job).state == "succeeded"
        assert any("outside" in message for message in harness.messages(job))


class TestBeforeTheTrainer:
    def test_a_trainer_that_cannot_be_started_is_a_crash(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        JobSupervisor(harness.resources, OWNER, harness.trainer_lock, ("/nowhere/python",)).run_next()
        assert (harness.job(job).state, harness.job(job).reason) == ("queued", "trainer_crashed")

    @pytest.mark.parametrize("what", ["changed", "unregistered", "missing"])
    def test_a_base_model_that_cannot_be_used_fails_the_job(
        self, harness: WorkerHarness, reviewed: Reviewed, what: str
    ) -> None:
        job = harness.create_queued_job()
        with transaction(harness.sessions) as session:
            directory = Path(session.get_one(BaseModelRow, "tiny").directory)
            if what == "unregistered":
                base_models.remove(session, "tiny")
        if what == "changed":
            (directory / "config.json").write_text("{}")
        if what == "missing":
            shutil.rmtree(directory)
        harness.run_next_job(TrainerPlan())
        failed = harness.job(job)
        assert (failed.error_code, failed.error_param) == ("model_unavailable", "model")
        reviewed(str(failed.error_message))

    def test_a_changed_data_set_fails_the_job(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        key = harness.file(job.training_file_id).storage_key
        (harness.resources.settings.storage_dir / "objects" / key).write_bytes(b"{}")
        harness.run_next_job(TrainerPlan())
        assert (harness.job(job).state, harness.job(job).error_code) == ("failed", "server_error")

    def test_a_deleted_data_set_is_still_used(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job()
        with transaction(harness.sessions) as session:
            files.delete_all(session, [job.training_file_id])
        harness.run_next_job(TrainerPlan())
        assert harness.job(job).state == "succeeded"

    def test_a_slot_whose_gpu_is_not_free_claims_no_job(self, harness: WorkerHarness) -> None:
        from worker.node.slot import try_lock

        job = harness.create_queued_job()
        with try_lock(harness.trainer_lock) as held:
            assert held is not None
            assert harness.run_next_job(TrainerPlan()) is False
        assert (harness.job(job).state, harness.job(job).attempt) == ("queued", 1)
        assert harness.run_next_job(TrainerPlan()) is True
