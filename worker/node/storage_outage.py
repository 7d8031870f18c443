"""Repeats writes to a bucket that fails for some minutes, so that its restart loses no checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from app.domain.artifacts.full_disk import duration_text, is_disk_full
from app.log import get_logger
from app.storage import StorageError

Result = TypeVar("Result")
RETRY_SECONDS = 2.0

log = get_logger(__name__)


class StorageOutage:
    """Repeats operations of storage. An outage that has lasted for the limit is not waited for again until it ends.

    The limit counts from the first failure, whichever operation saw it, so that a long outage delays a trainer's
    records once and not with each of them.
    """

    def __init__(self, stop: threading.Event, limit_seconds: float) -> None:
        self._stop = stop
        self._limit_seconds = limit_seconds
        self._began_at: float | None = None

    def retry(
        self, operation: Callable[[], Result], notify: Callable[[str], None], check: Callable[[], None]
    ) -> Result:
        """The result of `operation`. `notify` receives one message if it must be repeated, `check` runs before each
        repetition.

        Raises what `check` raises, and what `operation` raises: at the limit, when the worker stops, and at once for a
        full bucket and for every other error.
        """
        is_notified = False
        while True:
            try:
                result = operation()
            except StorageError as error:
                if is_disk_full(error) or self._is_over():
                    raise
                if not is_notified:
                    is_notified = True
                    log.warning("storage unavailable", error=str(error), cause=str(error.__cause__))
                    limit = duration_text(self._limit_seconds)
                    notify(f"Files cannot be stored: {error.strerror}. This is repeated for {limit}; nothing is lost")
                if self._stop.wait(RETRY_SECONDS):
                    raise
                check()
            else:
                self._began_at = None
                return result

    def _is_over(self) -> bool:
        now = time.monotonic()
        self._began_at = self._began_at or now
        return now - self._began_at >= self._limit_seconds
