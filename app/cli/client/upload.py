"""File upload: a small file in one request, a large one as a resumable upload."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.errors import CliError, ServiceUnreachable, UsageError
from app.cli.output.console import print_error

if TYPE_CHECKING:
    from app.cli.client.http import Client

MIN_RESUMABLE_BYTES = 64 << 20  # a smaller file is cheaper to send again than to resume
MAX_ATTEMPTS = 6  # in a row without progress
ATTEMPT_PAUSE_SECONDS = 1.0
MIME_TYPE = "application/jsonl"

Json = dict[str, Any]


def send_file(
    client: Client,
    path: Path,
    purpose: str,
    upload_id: str | None,
    expires_after: Json | None,
    on_bytes: Callable[[int], None],
) -> Json:
    """Upload a file and return its object. `upload_id` resumes an interrupted upload."""
    size_bytes = path.stat().st_size
    if upload_id is None and size_bytes < MIN_RESUMABLE_BYTES:
        return client.upload(path, purpose, expires_after, on_bytes)
    if upload_id:
        upload = _get_upload(client, upload_id, size_bytes)
    else:
        upload = _create_upload(client, path, purpose, size_bytes, expires_after)
    if upload["status"] == "completed":
        return dict(upload["file"])
    try:
        return _send_with_retries(client, path, upload["id"], size_bytes, on_bytes)
    except (ServiceUnreachable, KeyboardInterrupt):
        print_error(
            f"The received part is kept until the upload expires. "
            f"Resume it with: tunery files upload {path} --resume {upload['id']}"
        )
        raise


def _create_upload(client: Client, path: Path, purpose: str, size_bytes: int, expires_after: Json | None) -> Json:
    body = {"filename": path.name, "purpose": purpose, "bytes": size_bytes, "mime_type": MIME_TYPE}
    return client.post("uploads", body | {"expires_after": expires_after})


def _get_upload(client: Client, upload_id: str, size_bytes: int) -> Json:
    upload = client.get(f"uploads/{upload_id}")
    if upload["bytes"] != size_bytes:
        raise UsageError(f"{upload_id} is an upload of {upload['bytes']:,} bytes, but this file has {size_bytes:,}.")
    return upload


def _send_with_retries(
    client: Client, path: Path, upload_id: str, size_bytes: int, on_bytes: Callable[[int], None]
) -> Json:
    """Send the rest of the file, again after each lost connection, up to MAX_ATTEMPTS without progress."""
    counter = _ProgressCounter(on_bytes)
    failures, furthest = 0, -1
    while True:
        try:
            offset = int(client.head(f"uploads/{upload_id}/content")["upload-offset"])
            counter.set_offset(offset)
            failures, furthest = 0 if offset > furthest else failures, max(offset, furthest)
            return _send_rest(client, path, upload_id, offset, size_bytes, counter.advance)
        except ServiceUnreachable:
            failures += 1
            if failures == MAX_ATTEMPTS:
                raise
            time.sleep(failures * ATTEMPT_PAUSE_SECONDS)


class _ProgressCounter:
    """Counts the sent bytes for the progress bar; `set_offset` subtracts those that did not arrive."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes = on_bytes
        self._bytes = 0

    def advance(self, count: int) -> None:
        self._bytes += count
        self._on_bytes(count)

    def set_offset(self, offset: int) -> None:
        self.advance(offset - self._bytes)


def _send_rest(
    client: Client, path: Path, upload_id: str, offset: int, size_bytes: int, on_bytes: Callable[[int], None]
) -> Json:
    if offset == size_bytes:
        upload = client.complete_upload(f"uploads/{upload_id}/complete", size_bytes)
    else:
        upload = client.put_file(f"uploads/{upload_id}/content", path, offset, size_bytes, on_bytes)
    if upload["status"] != "completed":
        raise CliError(f"{upload_id} is {upload['status']} after its last byte.")
    return dict(upload["file"])
