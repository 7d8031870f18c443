"""The story of one job: claim -> prepare -> trainer -> relay -> publish -> end. Short transactions, work between.

What is true stands in PostgreSQL; whoever finds itself fenced drops everything and touches no row again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.jobs import checkpoints, claims, measurements
from app.db.jobs.claims import FencedError, NoLongerDesiredError
from app.db.tables import Job
from app.domain.artifacts.full_disk import Space, is_disk_full
from app.domain.jobs.events import Done
from app.domain.jobs.states import TERMINAL, Desired, JobState, Reason
from app.domain.scheduling.worker_capacity import Offer
from app.log import get_logger
from app.system.artifact_directory import ManifestMismatch
from worker.jobs import snapshots, workdir
from worker.jobs.exit_classification import STORAGE_PATIENCE, Ending, Outcome, judge
from worker.jobs.lease import DATABASE_AWAY, Claimer, LeaseKeeper
from worker.jobs.log_publisher import PublishedLog
from worker.jobs.prepare import CannotStart, prepare
from worker.jobs.record_writer import Relay
from worker.jobs.sanitize import clean_text
from worker.jobs.trainer_process import TRAINER, Child, start_trainer
from worker.jobs.warm_trainer import Spare
from worker.jobs.watchdog import Guard
from worker.node import space
from worker.node.device import oom_kills
from worker.node.resources import Resources

log = get_logger(__name__)


class Supervisor:
    """Sees the jobs of one GPU slot through, one at a time. `trainer` is the command that WORKDIR is appended to."""

    def __init__(
        self,
        resources: Resources,
        owner: str,
        trainer_lock: Path,
        trainer: Sequence[str] = TRAINER,
        offer: Callable[[], Offer] | None = None,
    ) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.claimer = Claimer(resources, "train", owner, offer)
        self.trainer_lock = trainer_lock
        self.trainer = trainer
        has_spare = self.settings.spare_trainer and self.settings.gpus_per_job == 1  # torchrun starts its own processes
        self.spare = Spare(trainer, trainer_lock, self.settings.threads, has_spare)

    def take_one(self) -> bool:
        """One job from its claim to its end; False when there is none, or the GPU is not free.

        The lock comes before the claim: a trainer that won't die keeps its GPU, but no job waits for it here.
        """
        with self.spare.lock() as lock:
            if lock is None:
                log.error("a trainer of an earlier attempt still holds this slot", lock=str(self.trainer_lock))
                return False
            taken = self.claimer.take()
            if taken is None:
                self.spare.keep_one(lock)
                return False
            job, keeper = taken
            with structlog.contextvars.bound_contextvars(job=job.id, attempt=job.attempt), keeper:
                self._see_through(job, keeper, lock)
        return True

    def _see_through(self, job: Job, keeper: LeaseKeeper, lock: int) -> None:
        log.info("job started", base_model=job.base_model)
        directory = workdir.attempt_directory(self.settings.work_dir, job.id, job.attempt)
        try:
            outcome = self._attempt(job, keeper, directory, lock)
            if outcome.reason != Reason.DONE:  # a success ended the attempt with everything it published
                self._give_up(keeper, outcome)
            log.info("attempt ended", reason=outcome.reason.value)
        except FencedError:
            log.info("fenced: the result is dropped")
        finally:
            space.release(self.resources, job, directory)
            workdir.clear(directory)
        self._forget_snapshots_if_ended(job)

    def _attempt(self, job: Job, keeper: LeaseKeeper, directory: Path, lock: int) -> Outcome:
        """Everything between the claim and the end; whatever goes wrong becomes an outcome. Raises FencedError."""
        needed: Space | None = None
        try:
            needed = self._prepare(job, keeper, directory)
            outcome = self._interruption(keeper) or self._train(job, keeper, directory, lock)
            return outcome if outcome.reason != Reason.STORAGE_FULL else self._full(job, directory, needed)
        except FencedError:
            raise
        except CannotStart as refusal:
            return refusal.outcome
        except NoLongerDesiredError:
            return Outcome(Reason.PAUSED, "The job was paused when it was about to succeed")
        except ManifestMismatch as error:
            return Outcome(Reason.TRAINER_CRASHED, clean_text(f"What the trainer left is not whole: {error}"))
        except OSError as error:
            log.exception("files or storage failed")
            if is_disk_full(error):
                return self._full(job, directory, needed, error)
            return Outcome(Reason.STORAGE_UNAVAILABLE, "Files could not be read or written; the job is tried again")
        except Exception:
            log.exception("the supervisor failed")
            return Outcome(Reason.TRAINER_CRASHED, "The worker met an internal error; its log has the details")

    def _full(self, job: Job, directory: Path, needed: Space | None, error: OSError | None = None) -> Outcome:
        """What is free is measured without what the attempt has written; PostgreSQL may need that space to end it."""
        space.release(self.resources, job, directory)
        workdir.clear(directory)
        return space.full(self.resources, directory, needed.next_try_bytes if needed else None, error)

    def _prepare(self, job: Job, keeper: LeaseKeeper, directory: Path) -> Space:
        """Trouble with files or storage is no fault of the job's: another worker, or a later try, may do better."""
        try:
            workdir.make_fresh(directory)
            return prepare(self.resources, job, keeper, directory)
        except OSError as error:
            log.exception("could not prepare the work directory")
            if is_disk_full(error):
                raise CannotStart(self._full(job, directory, None, error)) from error
            text = "The job's files could not be brought to the worker; it is tried again"
            raise CannotStart(Outcome(Reason.STORAGE_UNAVAILABLE, text)) from error

    def _interruption(self, keeper: LeaseKeeper) -> Outcome | None:
        """What came while we prepared, before there was a trainer to be told."""
        keeper.check()
        if self.resources.stop.is_set():
            return Outcome(Reason.DRAINED, "The worker stopped before the training began; the job is queued again")
        if keeper.desired == Desired.PAUSE:
            return Outcome(Reason.PAUSED, "The job was paused before the training began")
        if keeper.gives_way:
            return Outcome(Reason.GAVE_WAY, "The job gave way to an urgent one before the training began")
        return None

    def _train(self, job: Job, keeper: LeaseKeeper, directory: Path, lock: int) -> Outcome:
        relay = Relay(self.resources, job, keeper, directory)
        outcome: Outcome | None = None
        try:
            outcome = self._train_and_publish(job, keeper, directory, lock, relay)
        finally:  # also after a full disk, or a pause that came while the result was published
            if not keeper.fenced and (outcome is None or outcome.reason != Reason.DONE):
                relay.keep_last_snapshot()
        return outcome

    def _train_and_publish(self, job: Job, keeper: LeaseKeeper, directory: Path, lock: int, relay: Relay) -> Outcome:
        ending = self._run_trainer(job, keeper, directory, lock, relay)
        keeper.check()
        outcome = judge(ending)
        if outcome.reason == Reason.DONE:
            assert isinstance(ending.final, Done)
            metrics = relay.final_checkpoint.metrics if relay.final_checkpoint else {}
            relay.publisher.success(ending.final, metrics)
        elif outcome.reason == Reason.PAUSED:
            relay.publish_final_as_any()
        return outcome

    def _run_trainer(self, job: Job, keeper: LeaseKeeper, directory: Path, lock: int, relay: Relay) -> Ending:
        """Start it in this thread, which outlives it; write down what it says until it has no more to say."""
        kills_before = oom_kills()
        child = self._start(job, directory, lock)
        with PublishedLog(self.resources, job, directory):
            try:
                with Guard(child, keeper, self.resources.stop, self.settings) as guard:
                    for record in child.records():
                        relay.write(record)
                    child.wait(self.settings.stop_grace_seconds)
            finally:
                exit_code = child.close()
        _log_end(child, exit_code)
        return Ending(
            exit_code=exit_code,
            final=child.final,
            stalled=guard.stalled,
            drain_asked=guard.drain_asked_at is not None,
            pause_asked=guard.pause_asked,
            yield_asked=guard.yield_asked,
            oom_killed=oom_kills() > kills_before,
            memory_kills=keeper.transact(lambda session: measurements.count_memory_kills(session, job.id)) or 0,
        )

    def _start(self, job: Job, directory: Path, lock: int) -> Child:
        try:
            waiting = self.spare.take(directory, job.id)
            return waiting or start_trainer(self.trainer, directory, job.id, lock, self.settings.threads)
        except OSError as error:
            log.exception("the trainer could not be started")
            if is_disk_full(error):
                raise CannotStart(self._full(job, directory, None, error)) from error
            raise CannotStart(Outcome(Reason.TRAINER_CRASHED, "The trainer could not be started")) from error

    def _give_up(self, keeper: LeaseKeeper, outcome: Outcome) -> None:
        """End the attempt for a reason that decides what becomes of the job. Raises FencedError.

        After a lost COMMIT the repetition finds itself fenced, which says that the first one worked.
        """
        delay_seconds = self._delay_seconds(outcome.reason)

        def end(session: Session) -> None:
            job = claims.finish_held_attempt(
                session,
                keeper.lease,
                outcome.reason,
                outcome.message,
                outcome.level,
                outcome.data,
                param=outcome.param,
                delay_seconds=delay_seconds,
                max_crash_streak=self.settings.max_crash_streak,
                storage_wait_seconds=self.settings.storage_full_wait_seconds,
            )
            if job.state == JobState.QUEUED:
                self.resources.hints.after_commit(session, "gpu")

        keeper.conclude(end)

    def _delay_seconds(self, reason: Reason) -> float:
        if reason in (Reason.PAUSED, Reason.GAVE_WAY) or (reason == Reason.DRAINED and self.resources.stop.is_set()):
            return 0.0
        if reason == Reason.STORAGE_UNAVAILABLE:
            return STORAGE_PATIENCE * self.settings.requeue_delay_seconds
        return self.settings.requeue_delay_seconds

    def _forget_snapshots_if_ended(self, job: Job) -> None:
        """Nobody resumes an ended job. The reconciler does the same for those whose holder is gone."""
        try:
            with transaction(self.resources.sessions) as session:
                now = session.get(Job, job.id)
                rows = checkpoints.snapshots(session, job.id) if now and now.state in TERMINAL else []
        except DATABASE_AWAY as error:
            log.warning("snapshots not dropped", error=str(error))
            return
        snapshots.drop(self.resources, rows)


def _log_end(child: Child, exit_code: int | None) -> None:
    if exit_code == 0:
        log.info("trainer ended", bad_lines=child.bad_lines)
    else:
        log.warning("trainer ended", exit_code=exit_code, bad_lines=child.bad_lines, log_tail=child.log_tail())
