"""Directories of snapshots and checkpoints, and the newest snapshot that verifies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from app.system.artifact_directory import MANIFEST, ManifestMismatch

STEP = "step-"  # begins the name of a snapshot's directory, and of a checkpoint's

Candidate = TypeVar("Candidate")
Opened = TypeVar("Opened")


def newest_valid(
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
