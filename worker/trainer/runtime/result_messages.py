"""What is said when a run has ended: why it ended before its last step, and which adapter is the result."""

from __future__ import annotations

from collections.abc import Iterator

from worker.trainer.state import Run


def result_messages(run: Run) -> Iterator[str]:
    """Sentences for the user; none for a run that went to its end and whose last adapter is its best."""
    best = run.best
    if run.stops_early and run.step < run.schedule.total_steps:
        yield (
            f"Stopped early after step {run.step} of {run.schedule.total_steps}: the full validation loss did not fall "
            f"in {best.validations_without_fall} validation(s) in a row; it was {best.loss:.4f} after step {best.step}."
        )
    if run.promotes_earlier_step:
        yield f"The result is the adapter of step {best.step}, with the lowest full validation loss, {best.loss:.4f}."
    elif best.step not in (None, run.step):
        yield (
            f"The result is the last adapter, of step {run.step}; the full validation loss was lower after step "
            f"{best.step}, {best.loss:.4f}. hyperparameters.promote_best makes that one the result."
        )
