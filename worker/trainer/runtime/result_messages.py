"""The messages at the end of a run: why it stopped early, and which adapter is the result."""

from __future__ import annotations

from collections.abc import Iterator

from worker.trainer.training.state import Run


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
