"""The end of a complete run: save the result, compare it with the trained adapter, record and sample it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from app.domain.jobs.events import Done, Measured, ServedReferenceMeasured
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy
from worker.trainer.runtime.process import working_seconds
from worker.trainer.training.attempt import Loaded, TrainingAttempt
from worker.trainer.training.run_files import RunFiles
from worker.trainer.training.shared_work import SharedWork
from worker.trainer.training.state import Run


@dataclass(frozen=True)
class Finish:
    attempt: TrainingAttempt
    loaded: Loaded
    run: Run
    policy: OutOfMemoryPolicy
    files: RunFiles
    shared: SharedWork

    def __call__(self) -> tuple[Measured, Done]:
        """Save and check the result; return the last records of the run. Raises Failure(ADAPTER_MISMATCH)."""
        run, emit = self.run, self.attempt.emit
        if self.files.reserved.exists() and not self.files.has_current_snapshot:
            self.files.last_snapshot()  # for the next attempt, if the result cannot be published
        for text in result_messages(run):
            emit.message(text, step=run.step, best_step=run.best.step)
        # Only steps need the moments, and no step is left: a snapshot of this step is complete without them.
        run.optimizer.state.clear()
        self.loaded.base.kernels.memory.trim()  # for the large tensors of the check
        with run.at_best_step() if run.promotes_earlier_step else nullcontext():
            step, directory = run.step, self.files.checkpoint(final=True)
            if reference := self.shared.end(directory, is_earlier_step=run.promotes_earlier_step):
                emit(ServedReferenceMeasured(run_id=run.id, step=run.step, reference=reference))
            self.shared.report_samples()
        name = self.attempt.name_of(directory)
        return self._measured(), Done(run_id=run.id, step=step, trained_tokens=run.trained_tokens, directory=name)

    def _measured(self) -> Measured:
        run = self.run
        return Measured(
            run_id=run.id,
            mode=self.policy.plan,
            peak_bytes=self.loaded.base.kernels.memory.peak_bytes(),
            seconds=working_seconds(),
            step_seconds=run.step_seconds,
            step_tokens=run.step_tokens,
            validation_seconds=run.validation_seconds,
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
