"""Wait for a condition of another process, with a deadline and a message."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

INTERVAL_SECONDS = 0.05


def until(
    condition: Callable[[], object], what: str, seconds: float = 10, interval_seconds: float = INTERVAL_SECONDS
) -> None:
    """Poll until `condition` is true. Raises AssertionError after `seconds`, with the description `what`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        pause.wait(interval_seconds)
