"""The tokens of a job's files: stored by its validation, fetched by its attempts, which then tokenize nothing.

They save time and decide nothing: without them, or with altered ones, an attempt tokenizes the files itself.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from app.db.ids import new_id
from app.db.tables import File, JobTokens
from app.domain.jobs.spec import TokensFile
from app.log import get_logger
from app.storage import Storage
from app.system.artifact_directory import sha256_file
from worker.jobs import stored_files
from worker.jobs.lease import JobAttempt

MAX_BYTES = 2 << 30  # of each file's tokens: 400 million

log = get_logger(__name__)


class TokensWriter:
    """Writes the tokens of a job's files on the disk of the worker that validates them, then into storage.

    The tokens of a file that has too many, or that the disk or the storage does not take, are not stored.
    """

    def __init__(self, attempt: JobAttempt) -> None:
        self.now = datetime.now()  # what the chat template prints, in each file
        self._attempt = attempt
        self._sizes: dict[str, int] = {}  # in bytes, by role; without those that are not stored

    def begin(self, role: str) -> None:
        """Begin the tokens of the "training" or the "validation" file."""
        self._sizes[role] = 0

    def write(self, role: str, content: bytes) -> None:
        """Append to the tokens of the file."""
        if role not in self._sizes:
            return
        mode = "ab" if self._sizes[role] else "wb"
        self._sizes[role] += len(content)
        try:
            if self._sizes[role] > MAX_BYTES:
                raise OSError(errno.EFBIG, f"more than {MAX_BYTES:,} bytes")
            self._path(role).parent.mkdir(parents=True, exist_ok=True)
            with self._path(role).open(mode) as file:
                file.write(content)
        except OSError as error:
            log.warning("tokens not stored", role=role, error=error.strerror)
            del self._sizes[role]
            with suppress(OSError):
                self._path(role).unlink()

    def store(self, keys: list[str]) -> dict[str, Any]:
        """Move the tokens into storage, add their keys to `keys`, and return the columns of their row."""
        job, attempt = self._attempt.row, self._attempt
        prefix = stored_files.unique(f"jobs/{job.id}/attempts/{job.attempt}/tokens")
        columns: dict[str, dict[str, str]] = {"storage_keys": {}, "sha256": {}}
        for role in self._sizes:
            key = f"{prefix}/{role}"
            keys.append(key)
            try:
                columns["sha256"][role] = sha256_file(self._path(role))
                attempt.resources.storage.put(key, self._path(role))
            except OSError as error:
                log.warning("tokens not stored", role=role, error=error.strerror)
            else:
                columns["storage_keys"][role] = key
        ids = {"id": new_id("tokens", "_"), "project_id": job.project_id, "job_id": job.id}
        return {**ids, **columns, "rendered_at": self.now.isoformat()}

    def _path(self, role: str) -> Path:
        return self._attempt.directory / f"{role}.tokens"


def fetch(storage: Storage, row: JobTokens | None, datasets: Mapping[str, File], directory: Path) -> dict[str, Any]:
    """Fetch the stored tokens of a job's files, by role; return the fields of a RunSpec. Raises OSError.

    The trainer compares them with their digest.
    """
    if row is None:
        return {}
    fields: dict[str, Any] = {"rendered_at": row.rendered_at}
    for role, key in row.storage_keys.items():
        path = directory / f"{role}.tokens"
        with suppress(FileNotFoundError):
            stored_files.fetch(storage, key, path)
            file = TokensFile(path=path, sha256=row.sha256[role], dataset_sha256=datasets[role].sha256)
            fields[f"{role}_tokens"] = file
    return fields
