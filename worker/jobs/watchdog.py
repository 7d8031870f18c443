"""The watchdog of a trainer: a thread that checks every reason to stop it and never uses the database.

The thread that writes records may hang in a statement for half a minute, so the decision to stop a trainer depends on
clocks and flags only.
"""

from __future__ import annotations

import contextvars
import threading
import time
from types import TracebackType
from typing import Any, Protocol

from app.domain.jobs.events import Command
from app.domain.jobs.states import Desired
from app.log import get_logger
from app.settings import Settings
from worker.jobs.lease import LeaseKeeper

STALL_STEPS = 20  # a trainer with slow steps is hanging after this many median steps without a record
TICK_SECONDS = 0.25

log = get_logger(__name__)


class Stoppable(Protocol):
    """A child process that a watchdog can stop."""

    @property
    def silent_seconds(self) -> float: ...
    @property
    def median_step_seconds(self) -> float: ...
    @property
    def final_at(self) -> float | None: ...
    def send(self, command: Command) -> None: ...
    def drain(self) -> None: ...
    def kill(self) -> None: ...


class Watchdog:
    """Stops one child process when it must stop; the attributes record what was requested of it.

    As a context manager it runs its thread while the block lasts.
    """

    def __init__(self, process: Stoppable, keeper: LeaseKeeper[Any], stop: threading.Event, settings: Settings) -> None:
        self.stalled = False
        self.drain_requested_at: float | None = None
        self.self_fenced = False  # the drain was requested because no renewal of the lease was confirmed
        self.pause_requested = False
        self.preempt_requested = False
        self._process = process
        self._keeper = keeper
        self._stop = stop
        self._settings = settings
        self._ended = threading.Event()
        run_in_context = contextvars.copy_context().run  # with the ids of the job for its log lines
        self._thread = threading.Thread(target=run_in_context, args=(self._watch,), name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        tick_seconds = min(TICK_SECONDS, self._settings.watch_seconds / 2)
        while not self._ended.wait(tick_seconds):
            try:
                self.check()
            except Exception:  # a trainer must not run without a watchdog
                log.exception("watchdog failed; killing the trainer")
                self._process.kill()

    def check(self) -> None:
        """Check every reason to stop, the most urgent first."""
        unconfirmed_seconds = self._keeper.unconfirmed_seconds
        stall_limit_seconds = max(self._settings.stall_seconds, STALL_STEPS * self._process.median_step_seconds)
        if self._keeper.fenced:
            self._process.kill()
        elif unconfirmed_seconds > self._settings.self_fence_kill_seconds:
            self._keeper.mark_lost(f"no renewal was confirmed for {unconfirmed_seconds:.0f} s", "self_fenced")
            self._process.kill()
        elif self._process.silent_seconds > stall_limit_seconds:
            self.stalled = True
            self._process.kill()
        elif self._is_overdue():
            self._process.kill()
        elif self._stop.is_set() or unconfirmed_seconds > self._settings.self_fence_seconds:
            if self.drain_requested_at is None:
                self.drain_requested_at = time.monotonic()
                self.self_fenced = not self._stop.is_set()
                self._process.drain()
        # Pause and preemption have no deadline: a step may be long, and losing it costs more than a late stop.
        elif self._keeper.desired == Desired.PAUSE:
            if not self.pause_requested:
                self.pause_requested = True
                self._process.send(Command.PAUSE)
        elif self._keeper.preempt_requested and not self.preempt_requested:
            self.preempt_requested = True
            self._process.send(Command.DRAIN)

    def _is_overdue(self) -> bool:
        """Whether it still runs after the grace period of a drain, or long after its final record."""
        now = time.monotonic()
        if self.drain_requested_at is not None and now - self.drain_requested_at > self._settings.drain_grace_seconds:
            return True
        final_at = self._process.final_at
        return final_at is not None and now - final_at > self._settings.stop_grace_seconds
