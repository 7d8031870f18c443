"""Wait for a condition of another process, with a deadline and a message."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
DEADLINE_SECONDS = 30.0  # for real processes, on a machine with other load


def until(
    condition: Callable[[], Result], what: str, seconds: float = DEADLINE_SECONDS, interval_seconds: float = 0.02
) -> Result:
    """Poll until `condition` returns a true value, and return it; AssertionError with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(interval_seconds)
    return result
