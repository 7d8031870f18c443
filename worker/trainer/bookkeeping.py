"""Between steps: what is saved, evaluated and said, and how a run ends. The loop asks, this room does."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from app.domain.events import CheckpointSaved, Command, Done, Measured, Message, Metric, SnapshotSaved, Stopped
from app.domain.full_disk import RESERVED, is_disk_full
from app.domain.render import Renderer
from app.domain.states import Reason
from worker.trainer import device_memory
from worker.trainer.checkpoint import save_checkpoint
from worker.trainer.emit import Ledger
from worker.trainer.evaluate import Validation, evaluate
from worker.trainer.failures import Failure
from worker.trainer.model import Base
from worker.trainer.oom_between_steps import fewer_prompts, shorter_rows, with_less, without_moments
from worker.trainer.process import working_seconds
from worker.trainer.result_messages import result_messages
from worker.trainer.sample_answers import answers
from worker.trainer.snapshot import Choices, save_snapshot
from worker.trainer.state import Run, Step, Written
from worker.trainer.stop import Stops
from worker.trainer.verify import verify_adapter

LINES_NAMED = 16


@dataclass
class Bookkeeper:
    """Does between steps what the loop asks for; `choices` are those in force, and change where memory is short."""

    base: Base
    renderer: Renderer
    workdir: Path
    choices: Choices
    identities: dict[str, dict[str, Any]]  # by run: what its snapshots are bound to
    snapshot_interval_seconds: float
    say: Ledger
    stops: Stops
    is_snapshot_due: bool = False  # at this boundary
    full_disks: dict[str, Exception] = field(
        default_factory=dict
    )  # by run: met by a checkpoint since the last boundary

    def has_ended(self, run: Run) -> bool:
        return run.id in self.say.endings

    def at_boundary(self, runs: Sequence[Run]) -> None:
        """Snapshots are due for all runs at once: those of different steps are no state that a later attempt could
        go on from to the bit."""
        going = [run for run in runs if not self.has_ended(run)]
        for run in going:
            run.beside = {other.id: other.step for other in going if other is not run}
        oldest = min((run.snapshot_at for run in going), default=math.inf)
        self.is_snapshot_due = time.monotonic() - oldest >= self.snapshot_interval_seconds

    def after_step(self, step: Step) -> None:
        run = step.run
        if not step.is_finite:
            raise _not_finite(step)
        is_due, began = run.plan.is_validation_due(run.step), time.monotonic()
        validation = self._validate(run) if is_due else None
        run.validation_seconds += time.monotonic() - began if validation else 0.0
        self._report_step(step, validation)
        is_better = validation is not None and self._compare(run, validation)
        if run.plan.is_checkpoint_due(run.step) or run.is_complete or is_better:
            self._checkpoint_if_it_fits(run)
        if is_due and not run.is_complete:  # the result's answers come when it is known
            self._sample(run)

    def snapshot_if_due(self, run: Run) -> None:
        """What was decided is written before a step is made with it: chosen again, it may come out otherwise."""
        if error := self.full_disks.pop(run.id, None):
            self._last_snapshot(run)
            raise error
        is_new = run.snapshot_choices != self.choices
        if is_new or (self.is_snapshot_due and run.step > max(run.first_step, run.snapshot_step)):
            self._snapshot_or_end(run)

    def stop(self, run: Run, command: Command) -> None:
        if command is Command.CANCEL:
            self.say(Stopped(run_id=run.id, reason=Reason.CANCELLED, step=run.step))
            return
        self._last_snapshot(run)  # before the checkpoint, which has no reserved space
        if command is Command.PAUSE:
            self._checkpoint(run, final=run.is_complete and not run.promotes_another)
        reason = Reason.PAUSED if command is Command.PAUSE else Reason.DRAINED
        self.say(Stopped(run_id=run.id, reason=reason, step=run.step))

    def finish(self, run: Run) -> None:
        """The adapter is loaded again and compared before anybody hears that it is done."""
        is_written = (run.snapshot_step, run.snapshot_choices) == (run.step, self.choices)
        if self._reserved.exists() and not is_written:  # what the next attempt needs if the result cannot be published
            self._last_snapshot(run)
        for text in result_messages(run):
            self.say(Message(run_id=run.id, message=text, data={"step": run.step, "best_step": run.best.step}))
        device_memory.give_back(self.base.device, above_bytes=0)  # the check's large blocks would come on top of it
        with run.as_at_best() if run.promotes_another else nullcontext():
            step, directory = run.step, self._checkpoint(run, final=True)
            self._verify(run, directory)
            self._sample(run)
        if command := self.stops.wanted(run.id):
            self.stop(run, command)
        else:
            where = self._name(directory)
            if run.beside:  # an attempt that goes on with the others must not train it again
                self._snapshot(run)
            self._report_run(run)
            self.say(Done(run_id=run.id, step=step, trained_tokens=run.trained_tokens, directory=where))

    def _validate(self, run: Run) -> Validation | None:
        if run.validation is None:
            return None
        corpus, pulse, beta = run.validation, self.say.pulse(run.id), run.spec.hyperparameters.beta

        def work() -> Validation:
            return evaluate(self.base, run.id, corpus, self.choices.effective_validation_row_tokens, pulse, beta)

        return with_less(self, run, "measuring the validation loss", work, partial(shorter_rows, corpus))

    def _compare(self, run: Run, validation: Validation) -> bool:
        """Whether this step is worth a checkpoint because it is the best so far and may become the result."""
        knobs = run.spec.hyperparameters
        threshold = knobs.early_stopping.threshold if knobs.early_stopping else 0.0
        is_best = run.best.see(run.step, validation.loss, run.metrics, run.trained_tokens, threshold)
        if is_best and knobs.promote_best:
            run.best.keep(run.adapter)
        return is_best and knobs.promote_best

    def _verify(self, run: Run, directory: Path) -> None:
        def work() -> float:
            return verify_adapter(self.base, run, directory)

        with_less(self, run, "comparing the saved adapter", work, partial(without_moments, run))

    def _sample(self, run: Run) -> None:
        def work() -> list[tuple[str, str, str]]:
            return list(answers(self.base, run, self.renderer, self.choices.prompts_at_once))

        less = partial(fewer_prompts, len(run.spec.sample_prompts))
        for prompt, plain, tuned in with_less(self, run, "answering the sample prompts", work, less):
            data = {"step": run.step, "prompt": prompt, "base": plain, "tuned": tuned}
            text = f"Sample after step {run.step}: the base model and the tuned one."
            self.say(Message(run_id=run.id, message=text, data=data))

    def _report_step(self, step: Step, validation: Validation | None) -> None:
        run = step.run
        run.metrics = step.metrics("train")
        if validation:  # always of the whole file
            run.metrics |= validation.metrics("valid") | validation.metrics("full_valid")
            if not math.isfinite(validation.loss):
                text = (
                    f"The full validation loss after step {run.step} is {validation.loss}: it counts as one that rose."
                )
                self.say(Message(run_id=run.id, level="warn", message=text, data={"step": run.step}))
        self.say(
            Metric(
                run_id=run.id,
                step=run.step,
                total_steps=run.plan.total_steps,
                epoch=run.plan.epoch(run.step),
                learning_rate=step.learning_rate,
                grad_norm=step.grad_norm,
                trained_tokens=run.trained_tokens,
                labelled_tokens=step.labelled_tokens,
                tokens_per_second=step.tokens / step.seconds,
                eta_seconds=run.eta_seconds,
                peak_memory_bytes=peak_memory_bytes(self.base.device),
                **run.metrics,
            )
        )

    def _report_run(self, run: Run) -> None:
        self.say(
            Measured(
                run_id=run.id,
                mode=self.choices.mode,
                peak_bytes=device_memory.peak_bytes(self.base.device),
                seconds=working_seconds(),
                step_seconds=run.step_seconds,
                step_tokens=run.step_tokens,
                validation_seconds=run.validation_seconds,
            )
        )

    def _checkpoint(self, run: Run, *, final: bool) -> Path:
        """The public checkpoint of this step: written and announced, unless that has been done."""
        known = run.checkpoints.get(run.step)
        if known and known.final >= final:
            return known.directory
        directory = known.directory if known else save_checkpoint(run, self.base.name, self.base.directory)
        run.checkpoints[run.step] = Written(directory, final)
        self.say(
            CheckpointSaved(
                run_id=run.id,
                step=run.step,
                epoch=run.plan.epoch(run.step),
                directory=self._name(directory),
                final=final,
                metrics=run.metrics,
            )
        )
        return directory

    def _checkpoint_if_it_fits(self, run: Run) -> None:
        """On a full disk the run ends at the next boundary: a snapshot is exact only there."""
        try:
            self._checkpoint(run, final=run.is_complete and not run.promotes_another)
        except Exception as error:
            if not is_disk_full(error):
                raise
            self.full_disks[run.id] = error
            text = f"The checkpoint of step {run.step} could not be written: the disk is full."
            self.say(Message(run_id=run.id, level="warn", message=text, data={"step": run.step}))

    def _snapshot_or_end(self, run: Run) -> None:
        """Raises what a full disk raised, after a snapshot in the reserved space."""
        try:
            self._snapshot(run)
        except Exception as error:
            if is_disk_full(error):
                self._last_snapshot(run)
            raise

    def _last_snapshot(self, run: Run) -> None:
        """The snapshot that the next attempt goes on from.

        The worker has reserved space for it, so it fits onto a disk that others have filled meanwhile.
        """
        self._reserved.unlink(missing_ok=True)
        self._snapshot(run, final=True)

    @property
    def _reserved(self) -> Path:
        return self.workdir / RESERVED

    def _snapshot(self, run: Run, final: bool = False) -> None:
        directory, sha256 = save_snapshot(run, self.identities[run.id], self.choices)
        saved = SnapshotSaved(
            run_id=run.id, step=run.step, directory=self._name(directory), manifest_sha256=sha256, final=final
        )
        self.say(saved)

    def _name(self, directory: Path) -> str:
        return directory.relative_to(self.workdir).as_posix()


def peak_memory_bytes(device: torch.device) -> int:
    """On CUDA what tensors occupied at most, on a CPU what the process did."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _not_finite(step: Step) -> Failure:
    named = ", ".join(map(str, step.lines[:LINES_NAMED]))
    more = f" and {len(step.lines) - LINES_NAMED} more" if len(step.lines) > LINES_NAMED else ""
    return Failure(
        Reason.NON_FINITE_LOSS,
        f"Step {step.run.step + 1} gave the loss {step.loss} and the gradient norm {step.grad_norm}. In it were the "
        f"lines {named}{more} of the training file. Look at those lines, or lower hyperparameters.learning_rate.",
        "hyperparameters.learning_rate",
    )
