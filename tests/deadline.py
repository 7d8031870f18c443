"""Waiting for another process: look often, give up at a deadline, say what was waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

INTERVAL_SECONDS = 0.05


def until(
    condition: Callable[[], object], what: str, seconds: float = 10, interval_seconds: float = INTERVAL_SECONDS
) -> None:
    """Return as soon as `condition` is true. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        pause.wait(interval_seconds)
