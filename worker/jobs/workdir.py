"""The work directory of an attempt: <work>/<job>/attempt-<n>. After the attempt only the trainer's log is kept."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

LOG_NAMES = ("trainer.log", "trainer.log.1")
LOG_RETENTION_SECONDS = 7 * 86_400


def attempt_directory(work_dir: Path, job_id: str, attempt: int) -> Path:
    return (work_dir / job_id / f"attempt-{attempt}").absolute()


def create_empty(directory: Path) -> None:
    """It exists already only if this attempt was claimed without a confirmed COMMIT: see `Runner`."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def remove_all_but_logs(directory: Path) -> None:
    with suppress(FileNotFoundError):
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in LOG_NAMES:
                path.unlink(missing_ok=True)


def attempts(work_dir: Path, prefix: str = "") -> list[tuple[str, int, Path]]:
    """(id, attempt, directory) of every attempt that has a directory, of rows whose id begins with `prefix`."""
    result = []
    for directory in work_dir.glob(f"{prefix}*/attempt-*"):
        number = directory.name.removeprefix("attempt-")
        if number.isdecimal() and directory.is_dir():
            result.append((directory.parent.name, int(number), directory))
    return result


def remove_old_logs(directory: Path) -> None:
    """Remove an attempt's directory a week after its log was last written; the job's directory goes with the last
    one."""
    with suppress(FileNotFoundError):  # another process removes it, too
        newest = max((path.stat().st_mtime for path in directory.iterdir()), default=0.0)
        if time.time() - newest > LOG_RETENTION_SECONDS:
            remove(directory)


def remove(directory: Path) -> None:
    """Remove an attempt's directory, and that of its job after the last one."""
    shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):
        directory.parent.rmdir()
