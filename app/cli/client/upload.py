"""A file on its way to the server: a small one in one request, a large one as a stream that survives breaks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.errors import CliError, Unreachable, UsageError
from app.cli.output.console import print_error

if TYPE_CHECKING:
    from app.cli.client.http import Client

STREAMED_FROM_BYTES = 64 << 20  # below, sending it again costs less than asking how far it came
ATTEMPTS = 6  # in a row that bring nothing further
ATTEMPT_PAUSE_SECONDS = 1.0
MIME_TYPE = "application/jsonl"

Json = dict[str, Any]


def send_file(client: Client, path: Path, purpose: str, upload_id: str | None, on_bytes: Callable[[int], None]) -> Json:
    """The file as the server has it. `upload_id` goes on with an upload that was broken off."""
    size_bytes = path.stat().st_size
    if upload_id is None and size_bytes < STREAMED_FROM_BYTES:
        return client.upload(path, purpose, on_bytes)
    upload = _known(client, upload_id, size_bytes) if upload_id else _begin(client, path, purpose, size_bytes)
    if upload["status"] == "completed":
        return dict(upload["file"])
    try:
        return _stream(client, path, upload["id"], size_bytes, on_bytes)
    except (Unreachable, KeyboardInterrupt):
        print_error(
            f"What arrived is kept until it expires; go on with: tunery files upload {path} --resume {upload['id']}"
        )
        raise


def _begin(client: Client, path: Path, purpose: str, size_bytes: int) -> Json:
    body = {"filename": path.name, "purpose": purpose, "bytes": size_bytes, "mime_type": MIME_TYPE}
    return client.post("uploads", body)


def _known(client: Client, upload_id: str, size_bytes: int) -> Json:
    upload = client.get(f"uploads/{upload_id}")
    if upload["bytes"] != size_bytes:
        raise UsageError(f"{upload_id} is an upload of {upload['bytes']:,} bytes, and this file has {size_bytes:,}.")
    return upload


def _stream(client: Client, path: Path, upload_id: str, size_bytes: int, on_bytes: Callable[[int], None]) -> Json:
    """Ask how far it came and send the rest, until that worked, or did not get any further for several times."""
    shown = _Shown(on_bytes)
    failures, furthest = 0, -1
    while True:
        try:
            offset = int(client.head(f"uploads/{upload_id}/content")["upload-offset"])
            shown.move_to(offset)
            failures, furthest = 0 if offset > furthest else failures, max(offset, furthest)
            return _send_rest(client, path, upload_id, offset, size_bytes, shown.advance)
        except Unreachable:
            failures += 1
            if failures == ATTEMPTS:
                raise
            time.sleep(failures * ATTEMPT_PAUSE_SECONDS)


class _Shown:
    """What the bar shows: bytes that were sent and did not arrive are taken back."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes = on_bytes
        self._bytes = 0

    def advance(self, count: int) -> None:
        self._bytes += count
        self._on_bytes(count)

    def move_to(self, offset: int) -> None:
        self.advance(offset - self._bytes)


def _send_rest(
    client: Client, path: Path, upload_id: str, offset: int, size_bytes: int, on_bytes: Callable[[int], None]
) -> Json:
    if offset == size_bytes:
        upload = client.post(f"uploads/{upload_id}/complete", {})
    else:
        upload = client.put_file(f"uploads/{upload_id}/content", path, offset, size_bytes, on_bytes)
    if upload["status"] != "completed":
        raise CliError(f"{upload_id} is {upload['status']} after its last byte.")
    return dict(upload["file"])
