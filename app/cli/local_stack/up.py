"""`tunery up`: the whole service on one machine, as one story.

    refuse -> lock -> end leftovers -> PostgreSQL, Valkey -> schema, key, base model -> API, workers, reconciler
        -> watch -> stop

Everything that can be refused is refused before anything is created. Whatever ends this process, nothing it started
outlives it: see processes.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.cli.local_stack import base_model, first_run
from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.ports import base_url, free_port, get, is_loopback, without_password
from app.cli.local_stack.preflight import lent_account, refuse_unusable
from app.cli.local_stack.processes import Child, end_leftovers, exclusive, tail
from app.cli.local_stack.servers.postgres import LocalPostgres
from app.cli.local_stack.servers.valkey import LocalValkey
from app.cli.local_stack.services import child_environment, programs
from app.cli.local_stack.supervisor import Service, StopRequested, StopSignal, Supervisor, describe_exit
from app.db.engine import Sessions

READY_SECONDS = 120.0  # a cold disk and two slow cores; usually four
LEFTOVER_SECONDS = 10.0
# Workers first, so that they can still write down what they saved; then who serves readers; the servers last.
STOP_ORDER = (("reconciler", "webhooks", "gpu-worker", "cpu-worker"), ("api",), ("valkey",), ("postgres",))

Say = Callable[[str], None]


@dataclass(frozen=True)
class UpOptions:
    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one; runtime.json says which


def run(options: UpOptions, say: Say | None = None) -> int:
    """Until a signal ends it. 0: it was asked to stop; 1: it could not start, and said why."""
    say = say or _print
    stop = StopSignal()
    stop.listen()
    try:
        with _private_files(), _claimed(Layout(options.data_dir.resolve())) as layout:
            _Up(options, layout, stop, say).run()
    except (CannotStart, OSError) as error:
        print(f"tunery up: {error}", file=sys.stderr, flush=True)
        return 1
    except StopRequested:
        pass
    return 0


@contextmanager
def _private_files() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _claimed(layout: Layout) -> Iterator[Layout]:
    """This directory is ours alone, and usable, until the block ends."""
    refuse_unusable(layout)
    passable = lent_account() is not None
    layout.make_root(passable)
    with exclusive(layout.lock, f"Another `tunery up` runs on {layout.root}. Stop it, or choose another --data-dir."):
        layout.create_directories(passable)
        yield layout


class _Up:
    def __init__(self, options: UpOptions, layout: Layout, stop: StopSignal, say: Say) -> None:
        self._options = options
        self._layout = layout
        self._stop = stop
        self._say = say
        self._supervisor = Supervisor(stop, say)
        self._conversion: Child | None = None
        self._urls: dict[str, str] = {}
        self._began = time.monotonic()

    def run(self) -> None:
        try:
            self._start()
            self._supervisor.watch(self._write_runtime)
        finally:
            self._end()

    def _start(self) -> None:
        end_leftovers(self._layout.root, signal.SIGKILL, LEFTOVER_SECONDS)
        port = free_port(self._options.host, self._options.port)
        self._urls["base_url"] = base_url(self._options.host, port)
        self._tell("logs", f"{self._layout.logs}, a file for each process")
        self._begin_conversion()
        self._start_servers()
        self._prepare_database()
        self._start_services(port)
        self._await_ready()
        self._write_runtime()
        if not is_loopback(self._options.host):
            self._tell(
                "note", "other machines reach it, without TLS: put a reverse proxy in front, or trust the network"
            )
        took = time.monotonic() - self._began
        self._tell("ready", f"{self._urls['base_url']} after {took:.1f} s; Ctrl-C stops everything")

    def _begin_conversion(self) -> None:
        """At the same time as the servers start: it needs none of them."""
        directory = self._layout.models / base_model.NAME
        if directory.exists() or base_model.missing():
            return
        self._tell("base model", f"converting {base_model.NAME}, once; this takes about ten seconds")
        env = child_environment(self._layout.root, {})
        self._conversion = base_model.conversion(directory, self._layout.log("convert"), self._layout.root, env)
        self._conversion.start()

    def _start_servers(self) -> None:
        postgres, valkey = LocalPostgres(self._layout.postgres), LocalValkey(self._layout.valkey)
        self._urls["database_url"] = self._serve(postgres, "DATABASE_URL", f"PostgreSQL in {postgres.directory}")
        self._urls["redis_url"] = self._serve(valkey, "REDIS_URL", f"Valkey in {valkey.directory}")

    def _serve(self, server: LocalPostgres | LocalValkey, variable: str, where: str) -> str:
        yours = os.environ.get(variable)
        if yours:
            self._tell(server.name, f"yours, {without_password(yours)} ({variable})")
            return yours
        self._supervisor.start(Service(server.name, server, str(server.log), server.stop_seconds))
        self._tell(server.name, f"{where} (pid {server.pid})")
        return server.url

    def _prepare_database(self) -> None:
        with first_run.prepared_database(self._urls["database_url"], self._tell_of_migration) as sessions:
            created = first_run.ensure_admin_key(sessions, self._layout)
            first_run.refuse_open_without_key(sessions, self._options.host)
            self._offer_base_model(sessions)
        if created:
            self._tell("admin key", f"{created} (shown once; kept in {self._layout.admin_key})")

    def _tell_of_migration(self, before: str | None, after: str | None) -> None:
        self._tell("schema", f"migrated from revision {before or 'none'} to {after}")

    def _offer_base_model(self, sessions: Sessions) -> None:
        directory = self._layout.models / base_model.NAME
        if self._conversion is not None:
            self._await_conversion(self._conversion)
        if first_run.offer_base_model(sessions, directory):
            self._tell("base model", base_model.NAME)
        else:
            self._tell("base model", f"none: {base_model.missing()}, or `tunery models add` one of your own")

    def _await_conversion(self, conversion: Child) -> None:
        while not conversion.wait(0.1):
            self._stop.check()
        if conversion.exit_code != 0:
            log = self._layout.log("convert")
            raise CannotStart(
                f"The bundled base model could not be converted ({describe_exit(conversion.exit_code)}). "
                f"The end of {log} says:\n{tail(log)}"
            )

    def _start_services(self, port: int) -> None:
        env = child_environment(self._layout.root, self._urls)
        for program in programs(self._layout.root, self._options.host, port):
            log = self._layout.log(program.name)
            own = {**env, **program.environment, "TUNERY_LOG_FILE": str(log)}
            child = Child(program.name, program.command, log, self._layout.root, own, cwd=self._layout.root)
            self._supervisor.start(Service(program.name, child, str(log), program.grace_seconds))
            self._tell(program.name, f"{program.does} (pid {child.pid})")

    def _await_ready(self) -> None:
        """A program that dies already now has no crash to recover from: its own words are what helps."""
        deadline = time.monotonic() + READY_SECONDS
        while (answer := get(self._urls["base_url"], "/readyz"))[0] != 200:
            dead = self._supervisor.first_dead()
            if dead is not None:
                raise self._failed(dead.name, describe_exit(dead.process.exit_code))
            if time.monotonic() > deadline:
                raise self._failed("api", f"/readyz says {answer[0]} {answer[1][:500]}")
            self._stop.wait(0.1)
            self._stop.check()

    def _failed(self, name: str, seen: str) -> CannotStart:
        log = self._layout.log(name)
        return CannotStart(f"The {name} did not get ready ({seen}). The end of {log} says:\n{tail(log)}")

    def _write_runtime(self) -> None:
        self._layout.write_runtime(
            {**self._urls, "data_dir": str(self._layout.root), "pid": os.getpid(), "pids": self._supervisor.pids}
        )

    def _end(self) -> None:
        self._layout.runtime.unlink(missing_ok=True)
        if self._stop.requested:
            self._tell("stopping", "once more Ctrl-C does not wait for running jobs to save")
        if self._conversion is not None:
            self._conversion.kill()
        several = tuple(name for name in self._supervisor.pids if name.startswith("gpu-worker-"))
        self._supervisor.stop(((*STOP_ORDER[0], *several), *STOP_ORDER[1:]))
        if self._stop.requested:
            self._tell("stopped", f"nothing runs any more; the data stays in {self._layout.root}")

    def _tell(self, what: str, text: str) -> None:
        self._say(f"{what:<11} {text}")


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal or the pipe is gone; that must not keep us from stopping
        print(line, flush=True)
