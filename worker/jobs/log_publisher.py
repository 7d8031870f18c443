"""A running trainer's log, copied to where the API can read it: its end, now and then, and once more when it has ended.

The log on this disk was cleaned line by line as it was written (trainer_log). Here directories of the worker are
taken out as well; they are nobody's business but the operator's.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from app.db.engine import transaction
from app.db.jobs import logs
from app.db.tables import Job
from app.db.tables.logs import MAX_LOG_BYTES
from app.log import get_logger
from worker.jobs.lease import DATABASE_AWAY
from worker.jobs.workdir import LOG_NAMES
from worker.node.resources import Resources

PUBLISH_SECONDS = 10.0

log = get_logger(__name__)


class PublishedLog:
    """Publishes while the block lasts, in a thread: a database that hangs must not hold up the records."""

    def __init__(self, resources: Resources, job: Job, directory: Path) -> None:
        self._resources = resources
        self._job = job
        self._directory = directory
        self._published_size = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"log-{job.id}", daemon=True)

    def __enter__(self) -> PublishedLog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The trainer is gone, so this is all of its log. Waits for the database, but not for long."""
        self._over.set()
        self._thread.join(timeout=5)

    def _keep(self) -> None:
        while not self._over.wait(PUBLISH_SECONDS):
            self._publish()
        self._publish()

    def _publish(self) -> None:
        """A log that could not be published costs nobody a job."""
        try:
            size_bytes, text = read_end(self._directory)
            if size_bytes == self._published_size:
                return
            text = self._without_places(text)
            job = self._job
            kept = text.encode()[-MAX_LOG_BYTES:].decode("utf-8", errors="ignore")
            with transaction(self._resources.sessions) as session:
                logs.put(session, job.id, job.project_id, job.attempt, kept, max(0, size_bytes - len(kept.encode())))
            self._published_size = size_bytes
        except (OSError, *DATABASE_AWAY) as error:
            log.warning("log not published", job=self._job.id, error=str(error).split("\n", 1)[0])
        except Exception:
            log.exception("log not published", job=self._job.id)

    def _without_places(self, text: str) -> str:
        text = text.replace(str(self._directory.absolute()), "<job>")
        return text.replace(str(self._resources.settings.data_dir.absolute()), "<data>")


def read_end(directory: Path) -> tuple[int, str]:
    """How many bytes an attempt's log has, and the end of it, from a whole line on; an older half lies beside it."""
    newest, older = (directory / name for name in LOG_NAMES)
    end, size_bytes = b"", 0
    for path in (newest, older):
        if path.exists():
            size_bytes += path.stat().st_size
            end = _end_of(path, MAX_LOG_BYTES - len(end)) + end
    if size_bytes > len(end):
        end = end.partition(b"\n")[2] or end
    return size_bytes, end.decode("utf-8", errors="replace")


def _end_of(path: Path, size_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size_bytes))
        return file.read(size_bytes)
