"""Recognizes that a clock was set: by an administrator, by NTP after a long time, or when a machine was moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.log import get_logger
from app.system.host import boottime_seconds

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # of the host, also in its containers
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
        self._stepped_at = -float("inf")
        self.step_seconds = 0.0  # of the last step that this process has detected; negative: the clock was set back

    def is_steady(self, clock_seconds: float) -> bool:
        """Whether the clock, which says `clock_seconds`, was not set since the first call or for `quiet_seconds`."""
        self.has_stepped(clock_seconds)
        return self.has_run_for(self._quiet_seconds)

    def has_stepped(self, clock_seconds: float) -> bool:
        """Whether the clock, which says `clock_seconds`, was set since the call before."""
        now = self._boottime()
        earlier, self._offset_seconds = self._offset_seconds, clock_seconds - now
        if earlier is None or abs(step_seconds := self._offset_seconds - earlier) <= TOLERANCE_SECONDS:
            return False
        log.error("the clock was set", clock=self._name, step_seconds=round(step_seconds))
        self._stepped_at, self.step_seconds = now, step_seconds
        return True

    def has_run_for(self, seconds: float) -> bool:
        """Whether the last step that `is_steady` has detected is as long ago."""
        return self._boottime() - self._stepped_at >= seconds

    def reading(self) -> dict[str, Any]:
        """What a later process on this host needs to recognize a step, as JSON."""
        stepped_at = None if self._stepped_at == -float("inf") else self._stepped_at
        return {"boot": _boot_id(), "offset_seconds": self._offset_seconds, "stepped_at": stepped_at}

    def continue_from(self, reading: Mapping[str, Any]) -> None:
        """Use the reading of an earlier process, unless this one has its own, or the host was booted since."""
        boot_id = reading.get("boot")
        if self._offset_seconds is not None or boot_id is None or boot_id != _boot_id():
            return
        self._offset_seconds = reading["offset_seconds"]
        if reading["stepped_at"] is not None:
            self._stepped_at = reading["stepped_at"]


def _boot_id() -> str | None:
    """None on a system without boot ids, where each process begins with the time that it finds."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
