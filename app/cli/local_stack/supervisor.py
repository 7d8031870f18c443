"""Supervision of the services: start in order, restart after a crash, stop in reverse order."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from app.cli.local_stack.errors import CannotStart

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.2
MIN_RESTART_DELAY_SECONDS = 1.0
MAX_RESTART_DELAY_SECONDS = 30.0
WAIT_NOTICE_SECONDS = 2.0  # how long a stop may take before a message is printed
STABLE_RUN_SECONDS = 60.0  # a longer run resets the restart delay

Print = Callable[[str], None]


class Process(Protocol):
    """A ChildProcess, LocalPostgres or LocalValkey."""

    @property
    def exit_code(self) -> int | None: ...
    @property
    def pid(self) -> int | None: ...
    def start(self) -> object: ...
    def request_stop(self) -> None: ...
    def wait(self, seconds: float) -> bool: ...
    def kill(self) -> None: ...


@dataclass
class SupervisedService:
    name: str
    process: Process
    log: str
    grace_seconds: float = 10.0
    started_at: float = 0.0
    restart_delay_seconds: float = MIN_RESTART_DELAY_SECONDS
    restart_at: float | None = field(default=None)  # None: no restart is scheduled

    def start(self) -> None:
        self.restart_at = None
        self.started_at = time.monotonic()
        self.process.start()


class StopRequested(Exception):
    """A stop signal arrived during the start."""


class StopSignal:
    """A flag set by signals and checked between steps: an exception in a handler could interrupt a start."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self.is_forced = False  # after a second signal: do not wait for the services

    def listen(self) -> None:
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_signal)

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    def check(self) -> None:
        if self.requested:
            raise StopRequested

    def wait(self, seconds: float) -> bool:
        return self._requested.wait(seconds)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.is_forced = self.requested
        self._requested.set()


class ServiceSupervisor:
    def __init__(self, stop: StopSignal, print_line: Print) -> None:
        self._stop = stop
        self._print = print_line
        self._services: list[SupervisedService] = []

    def start(self, service: SupervisedService) -> None:
        self._stop.check()
        self._services.append(service)
        service.start()

    @property
    def pids(self) -> dict[str, int | None]:
        return {service.name: service.process.pid for service in self._services}

    def first_exited(self) -> SupervisedService | None:
        return next((service for service in self._services if service.process.exit_code is not None), None)

    def watch(self, on_restart: Callable[[], None]) -> None:
        """Restart services until a stop is requested. Calls `on_restart` after restarts, which change process ids."""
        while not self._stop.wait(POLL_SECONDS):
            if [service for service in self._services if self._restart_if_due(service)]:
                on_restart()

    def _restart_if_due(self, service: SupervisedService) -> bool:
        """Schedule the restart of an exited service, or restart it if that is due. Returns whether it was restarted."""
        now = time.monotonic()
        if service.restart_at is None and service.process.exit_code is not None:
            self._schedule_restart(service, now)
        if service.restart_at is None or now < service.restart_at:
            return False
        return self._restart(service)

    def _schedule_restart(self, service: SupervisedService, now: float) -> None:
        if now - service.started_at > STABLE_RUN_SECONDS:
            service.restart_delay_seconds = MIN_RESTART_DELAY_SECONDS
        self._print(
            f"{service.name} exited ({describe_exit(service.process.exit_code)}; see {service.log}), "
            f"restarting it in {service.restart_delay_seconds:.0f} s"
        )
        service.process.kill()  # kills the rest of its session and releases its lock
        service.restart_at = now + service.restart_delay_seconds
        service.restart_delay_seconds = min(2 * service.restart_delay_seconds, MAX_RESTART_DELAY_SECONDS)

    def _restart(self, service: SupervisedService) -> bool:
        try:
            service.start()
        except (CannotStart, OSError) as error:
            self._print(f"{service.name} did not start: {error}")
            service.restart_at = time.monotonic() + service.restart_delay_seconds
            return False
        self._print(f"{service.name} restarted (pid {service.process.pid})")
        return True

    def stop(self, order: Sequence[Sequence[str]]) -> None:
        """Stop group after group; the services of a group stop at the same time."""
        for names in order:
            group = [service for service in self._services if service.name in names]
            for service in group:
                service.process.request_stop()
            for service in group:
                self._wait_for(service)
                service.process.kill()

    def _wait_for(self, service: SupervisedService) -> None:
        stop_requested_at = time.monotonic()
        is_announced = False
        while not service.process.wait(POLL_SECONDS):
            waited_seconds = time.monotonic() - stop_requested_at
            if self._stop.is_forced or waited_seconds > service.grace_seconds:
                self._print(f"{service.name} did not stop in time and is killed")
                return
            if not is_announced and waited_seconds > WAIT_NOTICE_SECONDS:
                is_announced = True
                self._print(f"waiting for {service.name} to save its work, at most {service.grace_seconds:.0f} s")


def describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}"
