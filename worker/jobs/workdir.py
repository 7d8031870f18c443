"""Where an attempt works: <work>/<job>/attempt-<n>. What stays of it afterwards is the trainer's log."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

LOG_NAMES = ("trainer.log", "trainer.log.1")
LOGS_KEPT_SECONDS = 7 * 86_400


def attempt_directory(work_dir: Path, job_id: str, attempt: int) -> Path:
    return (work_dir / job_id / f"attempt-{attempt}").absolute()


def make_fresh(directory: Path) -> None:
    """It exists already only when this very attempt was interrupted before it began: see Claimer."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def clear(directory: Path) -> None:
    """Remove everything but the log."""
    with suppress(FileNotFoundError):
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in LOG_NAMES:
                path.unlink(missing_ok=True)


def attempts(work_dir: Path) -> list[tuple[str, int, Path]]:
    """(job id, attempt, directory) of everything that lies there."""
    found = []
    for directory in work_dir.glob("*/attempt-*"):
        number = directory.name.removeprefix("attempt-")
        if number.isdecimal() and directory.is_dir():
            found.append((directory.parent.name, int(number), directory))
    return found


def forget_old_log(directory: Path) -> None:
    """Remove an attempt's directory, and the job's with the last of them, a week after the last word in its log."""
    newest = max((path.stat().st_mtime for path in directory.iterdir()), default=0.0)
    if time.time() - newest > LOGS_KEPT_SECONDS:
        shutil.rmtree(directory, ignore_errors=True)
        with suppress(OSError):
            directory.parent.rmdir()
