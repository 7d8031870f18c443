"""Actions between steps: validation, sample answers, checkpoints, snapshots and reports; the run stops or ends here.

At the end of a complete run its result is saved, compared with the trained adapter, recorded and sampled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext

from app.domain.artifacts.full_disk import is_disk_full
from app.domain.jobs.events import Command, Done, Measured, Metric, ServedReferenceMeasured, Stopped
from app.domain.jobs.states import Reason
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy
from worker.trainer.objective.metrics import StepMetrics
from worker.trainer.runtime.failures import Failure
from worker.trainer.runtime.process import working_seconds
from worker.trainer.training.attempt import Loaded, Prepared, TrainingAttempt
from worker.trainer.training.run_files import RunFiles
from worker.trainer.training.shared_work import SharedWork
from worker.trainer.training.state import Run, StepResult

MAX_REPORTED_LINES = 16


class StepActions:
    """The actions between steps; only the first process runs them, the others take part in `shared`."""

    def __init__(self, attempt: TrainingAttempt, loaded: Loaded, prepared: Prepared, policy: OutOfMemoryPolicy) -> None:
        self.attempt, self.loaded, self.policy = attempt, loaded, policy
        self.run, self.emit = prepared.run, attempt.emit
        self.files = RunFiles(attempt, loaded.base, prepared.run, policy)
        self.shared = SharedWork(loaded, prepared, policy, attempt.emit)
        self.full_disk_error: Exception | None = None  # raised by the checkpoint of the previous step

    def after_step(self, result: StepResult) -> None:
        """Validate, report and save a checkpoint, each if it is due. An error ends the run."""
        with self.emit.fail_run_on_error():
            if not result.is_finite:
                raise _non_finite_loss(result)
            run = self.run
            is_validation_due, started = run.schedule.is_validation_due(run.step), time.monotonic()
            validation = self.shared.validate() if is_validation_due else None
            run.validation_seconds += time.monotonic() - started if validation else 0.0
            self._report_step(result, validation)
            is_best = validation is not None and self._update_best(validation)
            if run.schedule.is_checkpoint_due(run.step) or run.is_complete or is_best:
                self._checkpoint_unless_disk_full()
            if is_validation_due and not run.is_complete:  # `_finish` samples the result
                self.shared.report_samples()

    def between_steps(self) -> Reason | None:
        """Finish, stop or save a snapshot, if that is due. Return how the run ended, also by an error; else None."""
        if self.emit.ending is None:
            with self.emit.fail_run_on_error():
                self._between_steps()
        return self.emit.ending

    def _between_steps(self) -> None:
        stops = self.attempt.stops
        last_records = self._finish() if self.run.is_complete and stops.strongest is None else ()
        if command := stops.strongest:  # also of a run that has finished meanwhile
            self._stop(command)
        elif last_records:
            for record in last_records:
                self.emit(record)
        elif error := self.full_disk_error:
            self.files.last_snapshot()
            raise error
        elif self._is_snapshot_due():
            self.files.snapshot()

    def _finish(self) -> tuple[Measured, Done]:
        """Save and check the result; return the last records of the run. Raises Failure(ADAPTER_MISMATCH)."""
        run, emit, memory = self.run, self.emit, self.loaded.base.kernels.memory
        if self.files.reserved.exists() and not self.files.has_current_snapshot:
            self.files.last_snapshot()  # for the next attempt, if the result cannot be published
        for text in result_messages(run):
            emit.message(text, step=run.step, best_step=run.best.step)
        # Only steps need the moments, and no step is left: a snapshot of this step is complete without them.
        run.optimizer.state.clear()
        memory.trim()  # for the large tensors of the check
        with run.at_best_step() if run.promotes_earlier_step else nullcontext():
            step, directory = run.step, self.files.checkpoint(final=True)
            if reference := self.shared.end(directory, is_earlier_step=run.promotes_earlier_step):
                emit(ServedReferenceMeasured(run_id=run.id, step=run.step, reference=reference))
            self.shared.report_samples()
        measured = Measured(
            run_id=run.id,
            mode=self.policy.plan,
            peak_bytes=memory.peak_bytes(),
            seconds=working_seconds(),
            step_seconds=run.step_seconds,
            step_tokens=run.step_tokens,
            validation_seconds=run.validation_seconds,
        )
        name = self.attempt.name_of(directory)
        return measured, Done(run_id=run.id, step=step, trained_tokens=run.trained_tokens, directory=name)

    def _is_snapshot_due(self) -> bool:
        """Return whether the interval has passed, or the plan has changed.

        A changed plan is saved before its first step, because a later attempt might choose a different one.
        """
        run = self.run
        if run.snapshot_plan != self.policy.plan:
            return True
        interval_has_passed = time.monotonic() - run.snapshot_at >= self.attempt.spec.snapshot_interval_seconds
        return interval_has_passed and run.step > max(run.first_step, run.snapshot_step)

    def _stop(self, command: Command) -> None:
        reasons = {Command.CANCEL: Reason.CANCELLED, Command.PAUSE: Reason.PAUSED, Command.DRAIN: Reason.DRAINED}
        if command is not Command.CANCEL:
            self.files.last_snapshot()  # before the checkpoint, for which no space is reserved
        if command is Command.PAUSE:
            self._checkpoint()
        self.emit(Stopped(run_id=self.run.id, reason=reasons[command], step=self.run.step))

    def _checkpoint(self) -> None:
        self.files.checkpoint(final=self.run.is_complete and not self.run.promotes_earlier_step)

    def _checkpoint_unless_disk_full(self) -> None:
        """Save a checkpoint. After a full disk the run ends before the next step: only there a snapshot is exact."""
        try:
            self._checkpoint()
        except Exception as error:
            if not is_disk_full(error):
                raise
            self.full_disk_error = error
            text = f"The checkpoint of step {self.run.step} could not be saved: the disk is full."
            self.emit.message(text, "warn", step=self.run.step)

    def _update_best(self, validation: StepMetrics) -> bool:
        """Return whether this step is the best so far and may become the result, so that it needs a checkpoint."""
        run, hyperparameters = self.run, self.run.spec.hyperparameters
        threshold = hyperparameters.early_stopping.threshold if hyperparameters.early_stopping else 0.0
        is_best = run.best.update(run.step, validation.loss, run.metrics, run.trained_tokens, threshold)
        if is_best and hyperparameters.promote_best:
            run.best.copy_weights(run.adapter)
        return is_best and hyperparameters.promote_best

    def _report_step(self, result: StepResult, validation: StepMetrics | None) -> None:
        run = self.run
        run.metrics = result.metrics("train")
        if validation:  # every validation reads the complete file, so both scopes have the same values
            run.metrics |= validation.metrics("valid") | validation.metrics("full_valid")
            if not math.isfinite(validation.loss):
                text = f"The full validation loss after step {run.step} is {validation.loss}; it counts as an increase."
                self.emit.message(text, "warn", step=run.step)
        self.emit(
            Metric(
                run_id=run.id,
                step=run.step,
                total_steps=run.schedule.total_steps,
                epoch=run.schedule.epoch(run.step),
                learning_rate=result.learning_rate,
                grad_norm=result.grad_norm,
                trained_tokens=run.trained_tokens,
                labelled_tokens=result.labelled_tokens,
                tokens_per_second=result.tokens / result.seconds,
                eta_seconds=run.eta_seconds,
                peak_memory_bytes=self.loaded.base.kernels.memory.peak_bytes_of_process(),
                **run.metrics,
            )
        )


def result_messages(run: Run) -> Iterator[str]:
    """Yield the messages; none for a run with all its steps whose last adapter is the best."""
    best = run.best
    if run.stops_early and run.step < run.schedule.total_steps:
        yield (
            f"Stopped early after step {run.step} of {run.schedule.total_steps}: the full validation loss did not fall "
            f"in {best.validations_without_fall} validation(s) in a row. The lowest was {best.loss:.4f} after step "
            f"{best.step}."
        )
    if run.promotes_earlier_step:
        yield f"The result is the adapter of step {best.step}, with the lowest full validation loss, {best.loss:.4f}."
    elif best.step not in (None, run.step):
        yield (
            f"The result is the last adapter, of step {run.step}. The full validation loss was lower after step "
            f"{best.step}: {best.loss:.4f}. Set hyperparameters.promote_best to get the adapter with the lowest loss."
        )


def _non_finite_loss(result: StepResult) -> Failure:
    lines = ", ".join(map(str, result.lines[:MAX_REPORTED_LINES]))
    more = f" and {len(result.lines) - MAX_REPORTED_LINES} more" if len(result.lines) > MAX_REPORTED_LINES else ""
    return Failure(
        Reason.NON_FINITE_LOSS,
        f"Step {result.run.step + 1} has the loss {result.loss} and the gradient norm {result.grad_norm}. It trained "
        f"on the lines {lines}{more} of the training file. Check those lines, or lower hyperparameters.learning_rate.",
        "hyperparameters.learning_rate",
    )
