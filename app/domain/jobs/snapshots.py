"""Which snapshot a run goes on from, and the sentence that says so: one rule for a worker and for a trainer by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from app.system.artifact_directory import MANIFEST, ManifestMismatch

STEP = "step-"  # begins the name of a snapshot's directory, and of a checkpoint's

Candidate = TypeVar("Candidate")
Opened = TypeVar("Opened")


def first_whole(
    newest_first: Iterable[Candidate], open_one: Callable[[Candidate], Opened]
) -> tuple[Opened | None, list[str]]:
    """The first that opens without a ManifestMismatch, and what is wrong with each one before it."""
    problems: list[str] = []
    for candidate in newest_first:
        try:
            return open_one(candidate), problems
        except ManifestMismatch as error:
            problems.append(str(error))
    return None, problems


def candidates(directory: Path) -> list[Path] | None:
    """The snapshots in a directory of them, newest first, perhaps none yet; None for a directory that is itself one."""
    if directory.name.startswith(STEP) or (directory / MANIFEST).exists():
        return None
    return by_step(directory)[::-1]


def by_step(parent: Path) -> list[Path]:
    """The directories step-000001, ..., step-1000000 in `parent`, in the order of their numbers."""
    return sorted(
        (path for path in parent.glob(f"{STEP}*") if path.is_dir()), key=lambda path: (len(path.name), path.name)
    )


def going_on(step: int | None, problems: Sequence[str]) -> tuple[Literal["info", "warn"], str]:
    """(level, text) of the event that says where a run goes on: `step` None is the beginning."""
    text = f"Going on from the snapshot of step {step}"
    if step is None:
        text = "Starting again from step 0, as there is no snapshot to go on from"
    if problems:
        return "warn", f"{text}; not usable: " + "; ".join(problems)
    return "info", text
