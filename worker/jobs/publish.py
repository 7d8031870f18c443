"""Publish checkpoints during the training, and at its end the adapter, the results file and the success together.

Files go into storage first, under the attempt's own prefix; they become visible when the rows that name them are
committed. Files that no row names in the end are deleted again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.db import files
from app.db.base_models import models
from app.db.deliveries import deliveries
from app.db.jobs import checkpoints, claims, evaluations, events
from app.db.tables import Checkpoint, File, Job
from app.domain.deliveries.served_check import ServedReference
from app.domain.jobs.events import CheckpointSaved, Done, results_csv
from app.domain.jobs.spec import JobSpec
from app.domain.jobs.states import Reason
from app.system.artifact_directory import describe_archive
from worker.jobs import stored_files
from worker.jobs.lease import JobAttempt
from worker.jobs.sanitize import clean
from worker.jobs.stored_files import StoredFile

RESULTS = "step_metrics.csv"
UNSAFE_NAME_CHARACTERS = " /:?#%\\"


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint whose files are in storage, with the values of its row."""

    step: int
    name: str
    metrics: dict[str, Any]
    manifest: dict[str, Any]
    files: list[StoredFile]
    archive: StoredFile  # its size and SHA-256; the key names no object


class Publisher:
    def __init__(self, attempt: JobAttempt) -> None:
        self.attempt = attempt
        self.resources = attempt.resources
        self.job = attempt.row
        self.reference: ServedReference | None = None  # of the result, as the trainer measured it

    def publish_checkpoint(self, record: CheckpointSaved) -> None:
        """Publish an intermediate checkpoint, unless an earlier attempt has. Raises ManifestMismatch, OSError."""
        if self.attempt.transact(lambda session: self._is_published(session, record.step)):
            return
        name = f"{self._model_name()}:ckpt-step-{record.step}"
        with stored_files.deleted_unless_committed(self.resources.storage) as keys:
            stored = self._store(keys, record.directory, record.step, name, record.metrics, "")
            self.attempt.transact(
                lambda session: self._add_checkpoint(session, stored),
                lambda session: self._is_published(session, record.step),
            )

    def publish_result(self, done: Done, metrics: dict[str, float | None]) -> None:
        """Publish the result of a finished job and end the attempt, in one transaction.

        Raises FencedError, NoLongerDesiredError, ManifestMismatch, OSError.
        """
        self.attempt.update(phase="publishing")
        with stored_files.deleted_unless_committed(self.resources.storage) as keys:
            stored = self._store(keys, done.directory, done.step, self._model_name(), metrics, "-result")
            results = self._store_results(keys)
            self.attempt.finish(
                lambda session: self._succeed(session, stored, results, done.trained_tokens),
                lambda session: session.get_one(Job, self.job.id).fine_tuned_model == stored.name,
            )

    def _store(
        self, keys: list[str], directory: str, step: int, name: str, metrics: dict[str, float | None], suffix: str
    ) -> StoredCheckpoint:
        """Copy a checkpoint directory, verify it, and move it into storage.

        `suffix` distinguishes the keys of the result from those of an earlier checkpoint of the same step, whose
        objects are deleted with its files.
        """
        prefix = stored_files.unique(f"{self._prefix}/checkpoints/step-{step:06d}{suffix}")
        copy = self.attempt.directory / "outbox" / f"checkpoint-{step:06d}"
        manifest = stored_files.copy_verified(stored_files.resolve_inside(self.attempt.directory, directory), copy)
        archive = StoredFile(stored_files.ARCHIVE, f"{prefix}/{stored_files.ARCHIVE}", *describe_archive(copy))
        parts = stored_files.put_directory(self.attempt, copy, f"{prefix}/files", keys)
        copy.rmdir()
        return StoredCheckpoint(step, name, clean({"step": step} | metrics), clean(manifest), parts, archive)

    def _store_results(self, keys: list[str]) -> StoredFile:
        rows = self.attempt.transact(lambda session: events.all_metrics(session, self.job.id))
        path = self.attempt.directory / "outbox" / RESULTS
        path.write_bytes(results_csv(rows))
        return stored_files.put_file(self.attempt, path, f"{stored_files.unique(self._prefix)}/{RESULTS}", keys)

    def _add_checkpoint(self, session: Session, stored: StoredCheckpoint) -> Checkpoint:
        message = f"Checkpoint created at step {stored.step} with Snapshot ID: {stored.name}"
        job = claims.append_event(session, self.attempt.lease, message, data={"step": stored.step})
        checkpoint = self._write_checkpoint_row(session, job, stored)
        for retired in checkpoints.retire_old(session, job.id, checkpoint):
            files.delete_all(session, retired.all_file_ids)
        return checkpoint

    def _write_checkpoint_row(self, session: Session, job: Job, stored: StoredCheckpoint) -> Checkpoint:
        parts = [files.insert(session, self._row(part)) for part in stored.files]
        previous = checkpoints.at_step(session, job.id, stored.step)
        if previous is not None:  # a pause at the last step; the result has other files
            files.delete_all(session, previous.all_file_ids)
        checkpoint = previous or Checkpoint(project_id=job.project_id, job_id=job.id, step_number=stored.step)
        checkpoint.attempt, checkpoint.name, checkpoint.retired_at = job.attempt, stored.name, None
        checkpoint.metrics, checkpoint.manifest = stored.metrics, stored.manifest
        checkpoint.file_ids, checkpoint.evaluated_file_ids = [part.id for part in parts], None
        checkpoint.archive_file_id = files.insert_archive(session, self._row(stored.archive), parts).id
        session.add(checkpoint)
        session.flush()
        return checkpoint

    def _succeed(self, session: Session, stored: StoredCheckpoint, results: StoredFile, trained_tokens: int) -> Job:
        result = self._add_checkpoint(session, stored)
        for checkpoint in checkpoints.kept(session, self.job.id):
            models.add_tuned(session, self.job, checkpoint)
        claims.append_event(session, self.attempt.lease, f"New fine-tuned model created: {stored.name}")
        job = claims.finish_held_attempt(
            session,
            self.attempt.lease,
            Reason.DONE,
            "The job has successfully completed",
            trained_tokens=trained_tokens,
            fine_tuned_model=stored.name,
            result_file_ids=[files.insert(session, self._row(results)).id],
            adapter_sha256=stored.archive.sha256,
            adapter_bytes=stored.archive.size_bytes,
            adapter_archive_file_id=result.archive_file_id,
            crash_streak=0,
        )
        self._queue_evaluation(session, job, result)
        if self.reference is not None:
            deliveries.add_reference(session, result, self.reference.model_dump(mode="json"))
        deliveries.create_for_result(session, job, result)
        return job

    def _queue_evaluation(self, session: Session, job: Job, result: Checkpoint) -> None:
        """Queue the evaluation that the job was created with."""
        request = JobSpec.model_validate(job.spec).evaluation
        if request is None:
            return
        file = files.get_even_deleted(session, request.file)
        assert file is not None, "it was checked when the job was created"
        evaluations.insert(session, job, result, file, request.settings())
        self.resources.hints.after_commit(session, "gpu")

    def _row(self, stored: StoredFile) -> File:
        return stored.row(self.job.project_id, self.job.id)

    @property
    def _prefix(self) -> str:
        return f"jobs/{self.job.id}/attempts/{self.job.attempt}"

    def _is_published(self, session: Session, step: int) -> bool:
        return checkpoints.at_step(session, self.job.id, step) is not None

    def _model_name(self) -> str:
        return model_name(self.job.base_model, self.resources.settings.organization, self.job.suffix)


def model_name(base: str, organization: str, suffix: str | None) -> str:
    """`ft:base:organization:suffix:8 characters`, without characters that clients encode in URLs in different ways."""
    parts = (base, organization, suffix or "", secrets.token_hex(4))

    def is_safe(character: str) -> bool:
        return character.isprintable() and character not in UNSAFE_NAME_CHARACTERS

    return "ft:" + ":".join("".join(each if is_safe(each) else "-" for each in part) for part in parts)
