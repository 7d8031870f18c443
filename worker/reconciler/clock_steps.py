"""Recognizes that a clock was set: by an administrator, by NTP after a long time, or when a machine was moved."""

from __future__ import annotations

from collections.abc import Callable

from app.log import get_logger
from app.system.boot_clock import boottime_seconds

TOLERANCE_SECONDS = 10.0  # a clock that is slewed, and the time between two readings, differ by less

log = get_logger(__name__)


class StepDetector:
    """Compares a clock with the time since boot, which is never set. After a step the ages that the clock gives are
    wrong for as long as what they limit: `quiet_seconds`."""

    def __init__(self, name: str, quiet_seconds: float, boottime: Callable[[], float] = boottime_seconds) -> None:
        self._name = name
        self._quiet_seconds = quiet_seconds
        self._boottime = boottime
        self._offset_seconds: float | None = None
        self._quiet_until = -float("inf")
        self._stepped_at = -float("inf")

    def is_steady(self, clock_seconds: float) -> bool:
        """Whether the clock, which says `clock_seconds`, was not set since the first call or for `quiet_seconds`."""
        now = self._boottime()
        earlier, self._offset_seconds = self._offset_seconds, clock_seconds - now
        if earlier is not None and abs(step_seconds := self._offset_seconds - earlier) > TOLERANCE_SECONDS:
            log.error("the clock was set", clock=self._name, step_seconds=round(step_seconds))
            self._stepped_at, self._quiet_until = now, now + self._quiet_seconds
        return now >= self._quiet_until

    def has_run_for(self, seconds: float) -> bool:
        """Whether the last step that `is_steady` has detected is as long ago."""
        return self._boottime() - self._stepped_at >= seconds
