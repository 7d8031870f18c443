"""The event that says from which snapshot a run resumes: one text for a worker and for a trainer started by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def resume_message(step: int | None, problems: Sequence[str]) -> tuple[Literal["info", "warn"], str]:
    """(level, text) of the event that names where a run resumes; `step` None is the beginning."""
    text = f"Resuming from the snapshot of step {step}"
    if step is None:
        text = "Starting from step 0: there is no snapshot to resume from"
    if problems:
        return "warn", f"{text}; not usable: " + "; ".join(problems)
    return "info", text
