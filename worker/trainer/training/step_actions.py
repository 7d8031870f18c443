"""Actions between steps: validation, sample answers, checkpoints, snapshots, reports, and the end of the run."""

from __future__ import annotations

import math
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from app.domain.artifacts.full_disk import RESERVED_SPACE_FILE, is_disk_full
from app.domain.datasets.render import Renderer
from app.domain.deliveries.served_check import MAX_PROMPT_TOKENS, ServedReference
from app.domain.evaluations.spec import precision_text
from app.domain.jobs.events import (
    CheckpointSaved,
    Command,
    Done,
    Measured,
    Metric,
    ServedReferenceMeasured,
    SnapshotSaved,
    Stopped,
)
from app.domain.jobs.states import Reason
from worker.trainer.checkpoint.checkpoint import save_checkpoint
from worker.trainer.checkpoint.verify import verify_adapter
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy, drop_moments, reduce_prompts, reduce_validation
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.objective.metrics import StepMetrics
from worker.trainer.objective.objective import Objective
from worker.trainer.runtime.failures import Failure
from worker.trainer.runtime.process import StopRequests, working_seconds
from worker.trainer.runtime.records import RecordWriter
from worker.trainer.snapshot import save_snapshot
from worker.trainer.training.state import Run, SavedCheckpoint, StepResult, result_messages
from worker.trainer.validation.evaluate import evaluate, sample_answers
from worker.trainer.validation.served_reference import measure_reference

MAX_REPORTED_LINES = 16


@dataclass
class StepActions:
    """The actions between steps; only the first process runs them."""

    base: FrozenBase
    objective: Objective
    policy: OutOfMemoryPolicy
    renderer: Renderer
    workdir: Path
    identity: dict[str, Any]  # of the run, for snapshots
    snapshot_interval_seconds: float
    emit: RecordWriter
    stops: StopRequests
    full_disk_error: Exception | None = None  # raised by the checkpoint of the previous step

    def after_step(self, result: StepResult) -> None:
        """Validate, report and save a checkpoint, each if it is due. Raises Failure(NON_FINITE_LOSS)."""
        run = result.run
        if not result.is_finite:
            raise _non_finite_loss(result)
        is_validation_due, started = run.schedule.is_validation_due(run.step), time.monotonic()
        validation = self._validate(run) if is_validation_due else None
        run.validation_seconds += time.monotonic() - started if validation else 0.0
        self._report_step(result, validation)
        is_best = validation is not None and self._update_best(run, validation)
        if run.schedule.is_checkpoint_due(run.step) or run.is_complete or is_best:
            self._checkpoint_unless_disk_full(run)
        if is_validation_due and not run.is_complete:  # `_finish` samples the result
            self._sample(run)

    def between_steps(self, run: Run) -> None:
        """Stop, finish or save a snapshot, if that is due. Raises the error of a full disk."""
        if command := self.stops.strongest:
            self._stop(run, command)
        elif run.is_complete:
            self._finish(run)
        elif error := self.full_disk_error:
            self._last_snapshot(run)
            raise error
        elif self._is_snapshot_due(run):
            self._snapshot_or_end(run)

    def _is_snapshot_due(self, run: Run) -> bool:
        """Return whether the interval has passed, or the plan has changed.

        A changed plan is saved before its first step, because a later attempt might choose a different one.
        """
        if run.snapshot_plan != self.policy.plan:
            return True
        interval_has_passed = time.monotonic() - run.snapshot_at >= self.snapshot_interval_seconds
        return interval_has_passed and run.step > max(run.first_step, run.snapshot_step)

    def _stop(self, run: Run, command: Command) -> None:
        if command is Command.CANCEL:
            self.emit(Stopped(run_id=run.id, reason=Reason.CANCELLED, step=run.step))
            return
        self._last_snapshot(run)  # before the checkpoint, for which no space is reserved
        if command is Command.PAUSE:
            self._checkpoint(run, final=run.is_complete and not run.promotes_earlier_step)
        reason = Reason.PAUSED if command is Command.PAUSE else Reason.DRAINED
        self.emit(Stopped(run_id=run.id, reason=reason, step=run.step))

    def _finish(self, run: Run) -> None:
        """Save the result, compare it with the trained adapter, and report the run as done."""
        is_saved = (run.snapshot_step, run.snapshot_plan) == (run.step, self.policy.plan)
        if self._reserved_file.exists() and not is_saved:  # for the next attempt, if the result cannot be published
            self._last_snapshot(run)
        for text in result_messages(run):
            self.emit.message(text, step=run.step, best_step=run.best.step)
        self.base.kernels.memory.trim()  # makes space for the large tensors of the check
        with run.at_best_step() if run.promotes_earlier_step else nullcontext():
            step, directory = run.step, self._checkpoint(run, final=True)
            self._verify(run, directory)
            self._measure_reference(run)
            self._sample(run)
        if command := self.stops.strongest:
            self._stop(run, command)
        else:
            self._report_run(run)
            done = Done(run_id=run.id, step=step, trained_tokens=run.trained_tokens, directory=self._name(directory))
            self.emit(done)

    def _validate(self, run: Run) -> StepMetrics | None:
        dataset = run.validation_dataset
        if dataset is None:
            return None

        def work() -> StepMetrics:
            row_tokens = self.policy.plan.effective_validation_row_tokens
            return evaluate(self.objective, dataset, row_tokens, self.emit.keepalive)

        return self.policy.retry(run, "measuring the validation loss", work, partial(reduce_validation, dataset))

    def _update_best(self, run: Run, validation: StepMetrics) -> bool:
        """Return whether this step is the best so far and may become the result, so that it needs a checkpoint."""
        hyperparameters = run.spec.hyperparameters
        threshold = hyperparameters.early_stopping.threshold if hyperparameters.early_stopping else 0.0
        is_best = run.best.update(run.step, validation.loss, run.metrics, run.trained_tokens, threshold)
        if is_best and hyperparameters.promote_best:
            run.best.copy_weights(run.adapter)
        return is_best and hyperparameters.promote_best

    def _verify(self, run: Run, directory: Path) -> None:
        def work() -> float:
            return verify_adapter(self.base, run, directory)

        self.policy.retry(run, "comparing the saved adapter", work, partial(drop_moments, run))

    def _measure_reference(self, run: Run) -> None:
        """Record what an engine must compute. The adapter is saved, so no error of this ends the run."""

        def work() -> ServedReference | None:
            row_tokens = max(MAX_PROMPT_TOKENS, self.policy.plan.effective_validation_row_tokens)
            return measure_reference(self.base, run, self.renderer, row_tokens, self.emit.keepalive)

        try:
            reference = self.policy.retry(
                run, "recording what an engine must compute", work, partial(drop_moments, run)
            )
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            text = f"What an engine must compute was not recorded ({type(error).__name__}): deliveries are not checked."
            self.emit.message(text, "warn", step=run.step)
            return
        if reference is not None:
            self.emit(ServedReferenceMeasured(run_id=run.id, step=run.step, reference=reference))

    def _sample(self, run: Run) -> None:
        def work() -> list[tuple[str, str, str]]:
            return list(sample_answers(self.base, run, self.renderer, self.policy.plan.prompts_at_once))

        reduce = partial(reduce_prompts, len(run.spec.sample_prompts))
        for prompt, base, tuned in self.policy.retry(run, "answering the sample prompts", work, reduce):
            quantization = self.base.quantization
            precision = precision_text(quantization.model_dump() if quantization else None)
            text = f"Sample after step {run.step}: answers of the base model in {precision} and of the tuned model."
            self.emit.message(text, step=run.step, prompt=prompt, base=base, tuned=tuned)

    def _report_step(self, result: StepResult, validation: StepMetrics | None) -> None:
        run = result.run
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
                peak_memory_bytes=self.base.kernels.memory.peak_bytes_of_process(),
                **run.metrics,
            )
        )

    def _report_run(self, run: Run) -> None:
        self.emit(
            Measured(
                run_id=run.id,
                mode=self.policy.plan,
                peak_bytes=self.base.kernels.memory.peak_bytes(),
                seconds=working_seconds(),
                step_seconds=run.step_seconds,
                step_tokens=run.step_tokens,
                validation_seconds=run.validation_seconds,
            )
        )

    def _checkpoint(self, run: Run, *, final: bool) -> Path:
        """Save and report the public checkpoint of this step, unless that has been done. Returns its directory."""
        existing = run.checkpoints.get(run.step)
        if existing and existing.final >= final:
            return existing.directory
        directory = existing.directory if existing else save_checkpoint(run, self.base)
        run.checkpoints[run.step] = SavedCheckpoint(directory, final)
        self.emit(
            CheckpointSaved(
                run_id=run.id,
                step=run.step,
                epoch=run.schedule.epoch(run.step),
                directory=self._name(directory),
                final=final,
                metrics=run.metrics,
            )
        )
        return directory

    def _checkpoint_unless_disk_full(self, run: Run) -> None:
        """Save a checkpoint. After a full disk the run ends before the next step, because only there a snapshot is
        exact."""
        try:
            self._checkpoint(run, final=run.is_complete and not run.promotes_earlier_step)
        except Exception as error:
            if not is_disk_full(error):
                raise
            self.full_disk_error = error
            text = f"The checkpoint of step {run.step} could not be saved: the disk is full."
            self.emit.message(text, "warn", step=run.step)

    def _snapshot_or_end(self, run: Run) -> None:
        """Save a snapshot. On a full disk, save it in the reserved space and raise the error, which ends the run."""
        try:
            self._snapshot(run)
        except Exception as error:
            if is_disk_full(error):
                self._last_snapshot(run)
            raise

    def _last_snapshot(self, run: Run) -> None:
        """Save the snapshot from which the next attempt resumes, in the space that the worker has reserved for it."""
        self._reserved_file.unlink(missing_ok=True)
        self._snapshot(run, final=True)

    @property
    def _reserved_file(self) -> Path:
        return self.workdir / RESERVED_SPACE_FILE

    def _snapshot(self, run: Run, *, final: bool = False) -> None:
        directory, sha256 = save_snapshot(run, self.identity, self.policy.plan)
        saved = SnapshotSaved(
            run_id=run.id, step=run.step, directory=self._name(directory), manifest_sha256=sha256, final=final
        )
        self.emit(saved)

    def _name(self, directory: Path) -> str:
        return directory.relative_to(self.workdir).as_posix()


def _non_finite_loss(result: StepResult) -> Failure:
    lines = ", ".join(map(str, result.lines[:MAX_REPORTED_LINES]))
    more = f" and {len(result.lines) - MAX_REPORTED_LINES} more" if len(result.lines) > MAX_REPORTED_LINES else ""
    return Failure(
        Reason.NON_FINITE_LOSS,
        f"Step {result.run.step + 1} has the loss {result.loss} and the gradient norm {result.grad_norm}. It trained "
        f"on the lines {lines}{more} of the training file. Check those lines, or lower hyperparameters.learning_rate.",
        "hyperparameters.learning_rate",
    )
