"""Directories of snapshots and checkpoints, and the newest snapshot that verifies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from app.system.artifact_directory import MANIFEST, ManifestMismatch

STEP_PREFIX = "step-"  # of the names of snapshot and checkpoint directories

Candidate = TypeVar("Candidate")
Opened = TypeVar("Opened")


def newest_valid(
    newest_first: Iterable[Candidate], open_candidate: Callable[[Candidate], Opened]
) -> tuple[Opened | None, list[str]]:
    """The first candidate that opens without a ManifestMismatch, and the problems of the candidates before it."""
    problems: list[str] = []
    for candidate in newest_first:
        try:
            return open_candidate(candidate), problems
        except ManifestMismatch as error:
            problems.append(str(error))
    return None, problems


def snapshot_directories(directory: Path) -> list[Path] | None:
    """The snapshots in `directory`, newest first; None if `directory` is itself a snapshot."""
    if directory.name.startswith(STEP_PREFIX) or (directory / MANIFEST).exists():
        return None
    return step_directories(directory)[::-1]


def step_directories(parent: Path) -> list[Path]:
    """The directories step-000001, ..., step-1000000 in `parent`, in numerical order."""
    return sorted(
        (path for path in parent.glob(f"{STEP_PREFIX}*") if path.is_dir()), key=lambda path: (len(path.name), path.name)
    )
