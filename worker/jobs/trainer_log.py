"""The log of a trainer's standard error: bounded in size, printable, with secrets redacted, and its end published to
the database, where the API reads it: every few seconds and at the end.

The log on this disk is redacted line by line as it is written. For the database the directories of the worker are
removed as well, because users must not see them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO

from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.jobs import events
from app.db.tables import Job
from app.db.tables.jobs import MAX_LOG_BYTES
from app.log import get_logger
from worker.jobs.workdir import LOG_NAMES
from worker.node.resources import Background, Resources

MAX_LOG_FILE_BYTES = 10 << 20  # two halves: a full one is renamed, so the newest lines are always kept
MAX_LINE_BYTES = 8 << 10
MAX_TAIL_LINES = 20

# ESC and NUL would reach the operator's terminal; keys and passwords would reach everybody who gets the log.
UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]")
# Each pattern begins with a literal: with a `\w+` in front, a line of 8 kB takes a second, which blocks the trainer.
SECRETS = (
    (re.compile(r"(tnry|hf|sk)[_-][A-Za-z0-9_-]{8,}"), r"\1_***"),
    (re.compile(r"(://[^\s:/@]{0,200}):[^\s@]{1,200}@"), r"\1:***@"),
    (re.compile(r"(?i)(authorization|password|secret)(\s*[=:]\s*)(?:bearer\s+)?[^\s,;]{6,}"), r"\1\2***"),
)
PUBLISH_SECONDS = 10.0

log = get_logger(__name__)


class TrainerLog:
    def __init__(self, path: Path, max_bytes: int = MAX_LOG_FILE_BYTES) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._older_path = path.with_name(path.name + ".1")

    def copy_from(self, pipe: IO[bytes]) -> None:
        """Copy the pipe until end of file. On a full disk lines are lost, but the pipe is read, so nothing blocks."""
        try:
            while chunk := pipe.readline(MAX_LINE_BYTES):
                self._append(redact(chunk.decode("utf-8", errors="replace")))
        except ValueError:  # the pipe was closed during the read
            return

    def tail(self) -> str:
        """The last lines of the log."""
        try:
            return "\n".join(self.path.read_text(encoding="utf-8", errors="replace").splitlines()[-MAX_TAIL_LINES:])
        except OSError:
            return ""

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                is_full = file.tell() > self.max_bytes // 2
            if is_full:
                self.path.replace(self._older_path)
        except OSError:
            return


def redact(text: str) -> str:
    """Replace unprintable characters and everything that looks like a secret."""
    text = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", "\n"))
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


class LogPublisher(Background):
    """Publishes the log from a thread while the block lasts: a database that hangs must not block the records. At the
    end, when the trainer has exited, the complete log."""

    def __init__(self, resources: Resources, job: Job, directory: Path) -> None:
        super().__init__(f"log-{job.id}")
        self._resources = resources
        self._job = job
        self._directory = directory
        self._published_size = 0

    def _run(self) -> None:
        while not self._ended.wait(PUBLISH_SECONDS):
            self._publish()
        self._publish()

    def _publish(self) -> None:
        """Store the end of the log if it has grown. Errors are logged only: the job continues without its log."""
        try:
            size_bytes, text = read_log_tail(self._directory)
            if size_bytes == self._published_size:
                return
            text = text.replace(str(self._directory.absolute()), "<job>")
            text = text.replace(str(self._resources.settings.data_dir.absolute()), "<data>")
            job = self._job
            kept = text.encode()[-MAX_LOG_BYTES:].decode("utf-8", errors="ignore")
            with transaction(self._resources.sessions) as session:
                events.put_log(
                    session, job.id, job.project_id, job.attempt, kept, max(0, size_bytes - len(kept.encode()))
                )
            self._published_size = size_bytes
        except (OSError, *DATABASE_UNAVAILABLE) as error:
            log.warning("log not published", job=self._job.id, error=first_line(error))
        except Exception:
            log.exception("log not published", job=self._job.id)


def read_log_tail(directory: Path) -> tuple[int, str]:
    """The size of an attempt's log in bytes, and its last `MAX_LOG_BYTES`, starting at the beginning of a line.

    The log may consist of two files, of which the second has the older half.
    """
    newest, older = (directory / name for name in LOG_NAMES)
    tail, size_bytes = b"", 0
    for path in (newest, older):
        if path.exists():
            size_bytes += path.stat().st_size
            tail = _read_file_tail(path, MAX_LOG_BYTES - len(tail)) + tail
    if size_bytes > len(tail):
        tail = tail.partition(b"\n")[2] or tail
    return size_bytes, tail.decode("utf-8", errors="replace")


def _read_file_tail(path: Path, size_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size_bytes))
        return file.read(size_bytes)
