"""Keep services running: start in order, restart what crashes, stop in reverse order."""

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
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
RETRY_TIMEOUT_SECONDS = 2.0  # before a person is told what we wait for
STEADY_SECONDS = 60.0  # after so long a run the next crash starts counting anew

Say = Callable[[str], None]


class Process(Protocol):
    """A Child, or one of our two servers."""

    @property
    def exit_code(self) -> int | None: ...
    @property
    def pid(self) -> int | None: ...
    def start(self) -> object: ...
    def ask(self) -> None: ...
    def wait(self, seconds: float) -> bool: ...
    def kill(self) -> None: ...


@dataclass
class Service:
    name: str
    process: Process
    log: str
    grace_seconds: float = 10.0
    started: float = 0.0
    pause_seconds: float = FIRST_PAUSE_SECONDS
    start_at: float | None = field(default=None)  # while it waits to be started again

    def start(self) -> None:
        self.start_at = None
        self.started = time.monotonic()
        self.process.start()


class StopRequested(Exception):
    """Somebody asked us to stop while we were still starting."""


class StopSignal:
    """Signals become a flag, asked between steps: an exception out of a handler could cut a start in half."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self.insisted = False  # a second signal: stop waiting for anybody

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
        self.insisted = self.requested
        self._requested.set()


class Supervisor:
    def __init__(self, stop: StopSignal, say: Say) -> None:
        self._stop = stop
        self._say = say
        self._services: list[Service] = []

    def start(self, service: Service) -> None:
        self._stop.check()
        self._services.append(service)
        service.start()

    @property
    def pids(self) -> dict[str, int | None]:
        return {service.name: service.process.pid for service in self._services}

    def first_dead(self) -> Service | None:
        return next((service for service in self._services if service.process.exit_code is not None), None)

    def watch(self, changed: Callable[[], None]) -> None:
        """Until somebody asks us to stop. `changed` hears of every restart: process ids are new."""
        while not self._stop.wait(POLL_SECONDS):
            if [service for service in self._services if self._look_after(service)]:
                changed()

    def _look_after(self, service: Service) -> bool:
        """Whether it was started again."""
        now = time.monotonic()
        if service.start_at is None and service.process.exit_code is not None:
            self._plan_restart(service, now)
        if service.start_at is None or now < service.start_at:
            return False
        return self._restart(service)

    def _plan_restart(self, service: Service, now: float) -> None:
        if now - service.started > STEADY_SECONDS:
            service.pause_seconds = FIRST_PAUSE_SECONDS
        self._say(
            f"{service.name} ended ({describe_exit(service.process.exit_code)}; see {service.log}), "
            f"starting it again in {service.pause_seconds:.0f} s"
        )
        service.process.kill()  # it is dead; this ends what it left behind and drops its lock
        service.start_at = now + service.pause_seconds
        service.pause_seconds = min(2 * service.pause_seconds, LONGEST_PAUSE_SECONDS)

    def _restart(self, service: Service) -> bool:
        try:
            service.start()
        except (CannotStart, OSError) as error:
            self._say(f"{service.name} did not start: {error}")
            service.start_at = time.monotonic() + service.pause_seconds
            return False
        self._say(f"{service.name} runs again (pid {service.process.pid})")
        return True

    def stop(self, order: Sequence[Sequence[str]]) -> None:
        """Group after group; within a group all are asked at once, then waited for."""
        for names in order:
            group = [service for service in self._services if service.name in names]
            for service in group:
                service.process.ask()
            for service in group:
                self._wait_for(service)
                service.process.kill()

    def _wait_for(self, service: Service) -> None:
        asked = time.monotonic()
        told = False
        while not service.process.wait(POLL_SECONDS):
            waited = time.monotonic() - asked
            if self._stop.insisted or waited > service.grace_seconds:
                self._say(f"{service.name} did not end in time and is killed")
                return
            if not told and waited > RETRY_TIMEOUT_SECONDS:
                told = True
                self._say(f"waiting for {service.name} to save its work, at most {service.grace_seconds:.0f} s")


def describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}"
