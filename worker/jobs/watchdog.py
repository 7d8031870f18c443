"""Everything that may stop a trainer, in one thread that never touches the database.

The thread that writes records may hang in a statement for half a minute; whether a trainer has to go is decided by
clocks and flags alone.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol

from app.domain.jobs.events import Command
from app.domain.jobs.states import Desired
from app.log import get_logger
from app.settings import Settings
from worker.jobs.lease import LeaseKeeper

STALL_STEPS = 20  # so many median steps of silence are a hang, however slow the steps are
TICK_SECONDS = 0.25

log = get_logger(__name__)


class Stoppable(Protocol):
    """What a guard needs of a child."""

    @property
    def silent_seconds(self) -> float: ...
    @property
    def median_step_seconds(self) -> float: ...
    @property
    def final_at(self) -> float | None: ...
    def tell(self, command: Command) -> None: ...
    def drain(self) -> None: ...
    def kill(self) -> None: ...


class Guard:
    """Watches over one trainer while the block lasts; afterwards says what it did to it."""

    def __init__(self, child: Stoppable, keeper: LeaseKeeper, stop: threading.Event, settings: Settings) -> None:
        self.stalled = False
        self.drain_asked_at: float | None = None
        self.pause_asked = False
        self.yield_asked = False
        self._child = child
        self._keeper = keeper
        self._stop = stop
        self._settings = settings
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def __enter__(self) -> Guard:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        tick_seconds = min(TICK_SECONDS, self._settings.watch_seconds / 2)
        while not self._over.wait(tick_seconds):
            try:
                self.look()
            except Exception:  # nobody may be left without a guard
                log.exception("guard failed; killing the trainer")
                self._child.kill()

    def look(self) -> None:
        """One look at every reason to stop, the most urgent first."""
        unconfirmed_seconds = self._keeper.unconfirmed_seconds
        if self._keeper.fenced:
            self._child.kill()
        elif unconfirmed_seconds > self._settings.self_fence_kill_seconds:
            self._keeper.lose(f"no renewal was confirmed for {unconfirmed_seconds:.0f} s")
            self._child.kill()
        elif self._child.silent_seconds > self._stall_limit_seconds:
            self.stalled = True
            self._child.kill()
        elif self._is_overdue():
            self._child.kill()
        elif self._stop.is_set() or unconfirmed_seconds > self._settings.self_fence_seconds:
            self._drain()
        elif self._keeper.desired == Desired.PAUSE:
            self._pause()
        elif self._keeper.gives_way:
            self._yield()

    @property
    def _stall_limit_seconds(self) -> float:
        return max(self._settings.stall_seconds, STALL_STEPS * self._child.median_step_seconds)

    def _is_overdue(self) -> bool:
        """Drained, but still there when the grace is over; or done, but not gone."""
        now = time.monotonic()
        if self.drain_asked_at is not None and now - self.drain_asked_at > self._settings.drain_grace_seconds:
            return True
        final_at = self._child.final_at
        return final_at is not None and now - final_at > self._settings.stop_grace_seconds

    def _drain(self) -> None:
        if self.drain_asked_at is None:
            self.drain_asked_at = time.monotonic()
            self._child.drain()

    def _pause(self) -> None:
        """No deadline: a step may be long, and what it has done so far is worth more than a prompt pause."""
        if not self.pause_asked:
            self.pause_asked = True
            self._child.tell(Command.PAUSE)

    def _yield(self) -> None:
        """As patient as a pause, and for the same reason."""
        if not self.yield_asked:
            self.yield_asked = True
            self._child.tell(Command.DRAIN)
