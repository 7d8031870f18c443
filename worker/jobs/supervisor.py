"""One training job from its claim to its end: claim -> prepare -> train -> write records -> publish -> end the attempt.

Transactions are short, and no work is done inside them. PostgreSQL has the true state: a supervisor that is fenced
drops its results and writes no row any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from sqlalchemy.orm import Session

from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.jobs import checkpoints, claims
from app.db.jobs.leases import FencedError
from app.db.scheduling import gpu_reservations, measurements
from app.db.tables import Job
from app.domain.artifacts.full_disk import DiskSpace, is_disk_full
from app.domain.jobs.events import Done
from app.domain.jobs.states import TERMINAL, Desired, JobState, Reason
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.log import get_logger
from app.telemetry import metrics
from worker.jobs import stored_files, workdir
from worker.jobs.child_program import Watchdog
from worker.jobs.exit_classification import (
    AttemptOutcome,
    TrainerExit,
    classify_exit,
)
from worker.jobs.lease import JobAttempt, Runner
from worker.jobs.prepare import PreparationError, failure_outcome, prepare
from worker.jobs.record_writer import JobRecordWriter
from worker.jobs.trainer_log import LogPublisher
from worker.jobs.trainer_process import TRAINER_COMMAND, TrainerProcess, WarmTrainer, start_trainer
from worker.node import disk_space
from worker.node.device import gpu_problem, oom_kill_count, unused_gpu_uuids
from worker.node.resources import Resources
from worker.tracking.feeds import MetricFeeds

log = get_logger(__name__)


class JobSupervisor(Runner[Job, JobAttempt]):
    """Runs the jobs of one GPU slot, one at a time. `trainer` is a command; the work directory is its last argument."""

    kind = "train"
    table = Job
    attempt = JobAttempt

    def __init__(
        self,
        resources: Resources,
        owner: str,
        trainer_lock: Path,
        trainer: Sequence[str] = TRAINER_COMMAND,
        capacity: Callable[[], WorkerCapacity] | None = None,
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`alone` ends what else the idle slot does, while its block lasts."""
        super().__init__(resources, owner, self._hold_slot, alone)
        self.capacity = capacity
        self.trainer_lock = trainer_lock
        self.trainer = trainer
        is_enabled = (
            self.settings.spare_trainer and self.settings.gpus_per_job == 1
        )  # torchrun starts its own processes
        self.warm_trainer = WarmTrainer(trainer, trainer_lock, self.settings.threads, is_enabled)
        self._must_check_gpus = True  # at the start, and after a GPU was lost until it is there again

    def run_next(self) -> bool:
        """Run one job from its claim to its end; False when no job is due, or the GPU is not free.

        Without its GPUs a worker claims nothing, because each attempt would count as a lost GPU.
        """
        if self._must_check_gpus:
            if problem := gpu_problem(self.settings.gpus_per_job, self.settings.device):
                log.error("no job is claimed: a GPU is missing", problem=problem)
                return False
            self._must_check_gpus = False
            if unused := unused_gpu_uuids(self.settings.gpus_per_job, self.settings.device):
                log.warning("GPUs that train no job", gpus=unused, gpus_per_job=self.settings.gpus_per_job)
        return super().run_next()

    def claim(self, session: Session) -> Job | None:
        ttl_seconds, half_life_seconds = self.settings.lease_ttl_seconds, self.settings.fair_share_half_life_seconds
        offer = self.capacity() if self.capacity else None
        return claims.claim(session, "train", self.owner, ttl_seconds, offer, half_life_seconds)

    def wait_idly(self, lock: int) -> None:
        self.warm_trainer.ensure(lock)

    def run(self, attempt: JobAttempt) -> None:
        log.info("job started", base_model=attempt.row.base_model)
        try:
            outcome = self._attempt(attempt)
            if outcome.reason != Reason.DONE:  # a success ends the attempt in the transaction that publishes it
                attempt.end(outcome)
            attempt.outcome = outcome.reason
            self._must_check_gpus = outcome.reason == Reason.DEVICE_LOST
            log.info("attempt ended", reason=outcome.reason.value)
        finally:
            disk_space.release(attempt)
            self._drop_leftovers_if_ended(attempt.row)

    @contextmanager
    def _hold_slot(self) -> Iterator[int | None]:
        with self.warm_trainer.lock() as lock:
            if lock is None:
                log.error("a trainer of an earlier attempt still holds this slot", lock=str(self.trainer_lock))
            yield lock

    def _attempt(self, attempt: JobAttempt) -> AttemptOutcome:
        """Prepare, train and publish; every error becomes an outcome. Raises FencedError."""
        needed: DiskSpace | None = None
        error: Exception | None = None
        try:
            workdir.create_empty(attempt.directory)
            needed = prepare(attempt)
            outcome = self._stop_request(attempt) or self._train(attempt)
            if outcome.reason == Reason.OUT_OF_MEMORY:
                return self._out_of_memory(attempt, outcome)
            if outcome.reason != Reason.STORAGE_FULL:
                return outcome
        except FencedError:
            raise
        except Exception as failed:
            error = failed
        disk_space.release(attempt)  # before the free space is measured; PostgreSQL may need it to end the attempt
        workdir.remove_all_but_logs(attempt.directory)
        needed_bytes = needed.next_attempt_bytes if needed else None
        if error is None:
            return disk_space.disk_full_outcome(self.resources, attempt.directory, needed_bytes)
        return failure_outcome(attempt, error, needed_bytes)

    def _out_of_memory(self, attempt: JobAttempt, outcome: AttemptOutcome) -> AttemptOutcome:
        """A job that ran out of the memory of a slot is repeated with a whole GPU. Raises FencedError."""
        job = attempt.row
        slot_bytes = attempt.transact(lambda session: gpu_reservations.slot_bytes(session, job.id, job.attempt))
        if slot_bytes is None:
            return outcome
        attempt.update(needed_cuda_bytes=slot_bytes)
        text = f"The memory of a slot ({slot_bytes / 1e9:.2f} GB) was too small; the job is queued for a whole GPU"
        return AttemptOutcome(Reason.SLOT_TOO_SMALL, text)

    def _stop_request(self, attempt: JobAttempt) -> AttemptOutcome | None:
        """The outcome of a stop that was requested during the preparation, before there was a trainer to stop."""
        attempt.check_running()
        if attempt.desired == Desired.PAUSE:
            return AttemptOutcome(Reason.PAUSED, "The job was paused before the training began")
        if attempt.preempt_requested:
            text = "The job was preempted by an urgent job before the training began; it is queued again"
            return AttemptOutcome(Reason.PREEMPTED, text)
        return None

    def _train(self, attempt: JobAttempt) -> AttemptOutcome:
        """Run the trainer and publish its result; store the last snapshot if the job will need it."""
        feeds = MetricFeeds(self.settings, attempt.row)
        records = JobRecordWriter(attempt, feeds)
        is_published, has_failed = False, True
        try:
            ended = self._run_trainer(attempt, records)
            attempt.check()
            outcome = classify_exit(ended)
            has_failed = outcome.reason.final_state == JobState.FAILED
            records.write_feed_problems()
            if outcome.reason == Reason.DONE:
                assert isinstance(ended.final, Done)
                final_metrics = records.final_checkpoint.metrics if records.final_checkpoint else {}
                records.publisher.publish_result(ended.final, final_metrics)
                is_published = True
            elif outcome.reason == Reason.PAUSED:
                records.publish_final_as_intermediate()
            return outcome
        finally:  # also after a full disk, or a pause that came while the result was published
            metrics.TOKENS_PER_SECOND.set(0)
            feeds.close(has_failed)
            if not attempt.fenced and not is_published:
                records.store_last_snapshot()

    def _run_trainer(self, attempt: JobAttempt, records: JobRecordWriter) -> TrainerExit:
        """Start the trainer from this thread (the parent-death signal follows the thread) and store its records until
        end of file."""
        kills_before = oom_kill_count()
        trainer = self._start_trainer(attempt)
        with LogPublisher(self.resources, attempt.row, attempt.directory):
            try:
                with Watchdog(trainer, attempt, self.resources.stop, self.settings) as watchdog:
                    for record in trainer.records():
                        records.write(record)
                    trainer.wait(self.settings.stop_grace_seconds)
            finally:
                exit_code = trainer.close()
        if exit_code == 0:
            log.info("trainer ended", bad_lines=trainer.bad_lines)
        else:
            log.warning("trainer ended", exit_code=exit_code, bad_lines=trainer.bad_lines, log_tail=trainer.log_tail())
        return TrainerExit(
            exit_code=exit_code,
            final=trainer.final,
            stalled=watchdog.stalled,
            drain_requested=watchdog.drain_requested_at is not None,
            self_fenced=watchdog.self_fenced,
            pause_requested=watchdog.pause_requested,
            preempt_requested=watchdog.preempt_requested,
            oom_killed=oom_kill_count() > kills_before,
            memory_kills=attempt.transact(lambda session: measurements.count_memory_kills(session, attempt.row.id)),
            log_tail=trainer.log_tail(),
        )

    def _start_trainer(self, attempt: JobAttempt) -> TrainerProcess:
        directory, job_id = attempt.directory, attempt.row.id
        try:
            warm = self.warm_trainer.take(directory, job_id)
            return warm or start_trainer(self.trainer, directory, job_id, attempt.lock, self.settings.threads)
        except OSError as error:
            if is_disk_full(error):
                raise
            log.exception("the trainer could not be started")
            outcome = AttemptOutcome(Reason.TRAINER_CRASHED, "The trainer could not be started")
            raise PreparationError(outcome) from error

    def _drop_leftovers_if_ended(self, job: Job) -> None:
        """A job that has ended is never resumed. The reconciler does the same for jobs whose worker died."""
        try:
            with transaction(self.resources.sessions) as session:
                row = session.get(Job, job.id)
                rows = checkpoints.kept_until_end(session, job.id) if row and row.state in TERMINAL else []
        except DATABASE_UNAVAILABLE as error:
            log.warning("snapshots not dropped", error=first_line(error))
            return
        stored_files.drop(self.resources, rows)
