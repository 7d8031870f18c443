"""`tunery up`: the whole service on one machine.

    check -> lock -> terminate leftovers -> PostgreSQL, Valkey -> schema, key, base model -> API, workers, reconciler
        -> watch -> stop

All checks run before anything is created. All child processes end with this process, however it ends: see
processes.py. `python -m app.cli.local_stack.up DATA_DIR HOST PORT` is `tunery up` as `running_in_background` starts it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.cli.local_stack import first_run
from app.cli.local_stack.checks import preflight
from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.machine import (
    CannotStart,
    base_url,
    free_port,
    http_get,
    is_loopback,
    local_postgres_account,
    unused_gpus_text,
    without_password,
)
from app.cli.local_stack.processes import ChildProcess, exclusive_lock, private_files, terminate_leftovers
from app.cli.local_stack.servers import LocalPostgres, LocalServer, LocalValkey
from app.cli.local_stack.services import (
    WORKER_GRACE_SECONDS,
    ServiceSupervisor,
    StopRequested,
    StopSignal,
    child_environment,
    metrics_ports,
    needed_by,
    programs,
)
from app.cli.output.console import print_checks, print_note
from app.db.engine import Sessions

READY_TIMEOUT_SECONDS = 120.0  # for a cold disk and two slow cores; usually 4 s
LEFTOVER_TIMEOUT_SECONDS = 10.0
MAX_PORT = 65_535
STORAGE_PLACE = {"storage_url", "storage_endpoint", "storage_region"}  # settings, for commands of another environment
BACKGROUND_START_SECONDS = 180.0  # the first start converts the base model


def run(data_dir: Path, host: str, port: int, web_port: int | None = None) -> int:
    """Run until a signal. Returns 0 after a stop by a signal, 1 after an error at the start, which is printed.

    `port` 0 is any free port, see runtime.json; `web_port`, of the dashboard: None is the port after `port` if it is
    free, else any.
    """
    stop = StopSignal()
    stop.listen()
    layout = Layout(data_dir.resolve())
    try:
        if problems := [check for check in preflight(layout, host) if check.level == "problem"]:
            return print_checks(problems, print_note)
        with private_files(), _locked(layout):
            _LocalStack(layout, stop, host).run(port, web_port)
    except (CannotStart, OSError) as error:
        print(f"tunery up: {error}", file=sys.stderr, flush=True)
        return 1
    except StopRequested:
        pass
    return 0


@contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    """Create and lock the data directory until the block ends."""
    is_traversable = local_postgres_account() is not None
    layout.create_root(is_traversable)
    with exclusive_lock(
        layout.lock, f"Another `tunery up` runs on {layout.root}. Stop it, or choose another --data-dir."
    ):
        layout.create_directories(is_traversable)
        yield


class _LocalStack:
    def __init__(self, layout: Layout, stop: StopSignal, host: str) -> None:
        self._layout = layout
        self._stop = stop
        self._host = host
        self._supervisor = ServiceSupervisor(stop, _print)
        self._conversion: ChildProcess | None = None
        self._urls: dict[str, str] = {}
        self._started_at = time.monotonic()

    def run(self, port: int, web_port: int | None) -> None:
        try:
            self._start(port, web_port)
            self._supervisor.watch(self._write_runtime)
        finally:
            self._stop_all()

    def _start(self, chosen_port: int, chosen_web_port: int | None) -> None:
        terminate_leftovers(self._layout.root, signal.SIGKILL, LEFTOVER_TIMEOUT_SECONDS)
        port = free_port(self._host, chosen_port)
        web_port = self._free_web_port(port if chosen_port else MAX_PORT, chosen_web_port)
        self._urls["base_url"] = base_url(self._host, port)
        self._urls["web_url"] = base_url(self._host, web_port)
        self._report("logs", f"{self._layout.logs}, a file for each process")
        if location := self._layout.storage_settings().s3_location:
            self._report("storage", f"the bucket {location.bucket} at {location.endpoint or 'Amazon S3'}")
        self._start_conversion()
        self._start_servers()
        self._prepare_database()
        self._start_services(port, web_port)
        self._write_runtime()
        if not is_loopback(self._host):
            self._report(
                "note", "other machines can connect without TLS: use a reverse proxy, or only a trusted network"
            )
        self._report("dashboard", f"{self._urls['web_url']} (sign in with the key in {self._layout.admin_key})")
        duration_seconds = time.monotonic() - self._started_at
        self._report("ready", f"{self._urls['base_url']} after {duration_seconds:.1f} s; Ctrl-C stops everything")

    def _free_web_port(self, port: int, chosen: int | None) -> int:
        """The dashboard's port, by default the one after `port`. Raises CannotStart if the chosen one is taken."""
        if chosen is not None:
            return free_port(self._host, chosen)
        if port < MAX_PORT:
            with contextlib.suppress(CannotStart):
                return free_port(self._host, port + 1)
        return free_port(self._host, 0)

    def _start_conversion(self) -> None:
        """Start the conversion of the base model, which runs while the servers start."""
        directory = self._layout.models / first_run.BUNDLED_MODEL
        if directory.exists() or first_run.missing_dependency():
            return
        self._report("base model", f"converting {first_run.BUNDLED_MODEL}, once; this takes about ten seconds")
        env = needed_by("convert", child_environment(self._layout.root, {}))
        self._conversion = first_run.conversion_process(directory, self._layout.log("convert"), self._layout.root, env)
        self._conversion.start()

    def _start_servers(self) -> None:
        postgres, valkey = LocalPostgres(self._layout.postgres), LocalValkey(self._layout.valkey)
        self._urls["database_url"] = self._start_or_use(postgres, "DATABASE_URL")
        self._urls["redis_url"] = self._start_or_use(valkey, "REDIS_URL")

    def _start_or_use(self, server: LocalServer, variable: str) -> str:
        """Start a server unless its variable has the URL of another one. Returns the URL."""
        external_url = os.environ.get(variable)
        if external_url:
            self._report(server.name, f"external, {without_password(external_url)} ({variable})")
            return external_url
        self._start_service(server)
        return server.url

    def _start_service(self, service: ChildProcess) -> None:
        self._supervisor.start(service)
        self._report(service.name, f"{service.description} (pid {service.pid})")

    def _prepare_database(self) -> None:
        def report_migration(before: str | None, after: str | None) -> None:
            self._report("schema", f"migrated from revision {before or 'none'} to {after}")

        with first_run.prepared_database(self._urls["database_url"], report_migration) as sessions:
            created = first_run.ensure_admin_key(sessions, self._layout)
            first_run.require_key_for_remote_access(sessions, self._host)
            self._register_base_model(sessions)
        if created:
            self._report("admin key", f"{created} (shown once; stored in {self._layout.admin_key})")

    def _register_base_model(self, sessions: Sessions) -> None:
        directory = self._layout.models / first_run.BUNDLED_MODEL
        if self._conversion is not None:
            self._wait_for_conversion(self._conversion)
        if first_run.register_base_model(sessions, directory):
            self._report("base model", first_run.BUNDLED_MODEL)
        else:
            self._report(
                "base model", f"none: {first_run.missing_dependency()}, or register another with `tunery models add`"
            )

    def _wait_for_conversion(self, conversion: ChildProcess) -> None:
        while not conversion.wait(0.1):
            self._stop.check()
        if conversion.exit_code != 0:
            raise CannotStart(
                f"Could not convert the bundled base model ({conversion.exit_text}). {conversion.end_of_log}"
            )

    def _start_services(self, port: int, web_port: int) -> None:
        env = child_environment(self._layout.root, self._urls)
        env.setdefault(first_run.SECRET_KEYS_VARIABLE, first_run.ensure_secret_key(self._layout))
        started = programs(self._layout.root, self._host, port, web_port)
        if unused := unused_gpus_text():
            self._report("unused GPUs", unused)
        ports = metrics_ports([program.name for program in started])
        for program in started:
            program.env = {
                **needed_by(program.name, env),
                **program.env,
                "TUNERY_LOG_FILE": str(program.log),
                "TUNERY_METRICS_HOST": "127.0.0.1",
                "TUNERY_METRICS_PORT": str(ports[program.name]),
            }
            self._start_service(program)
        self._layout.write_metrics_targets(ports)
        self._report("metrics", f"for Prometheus, on loopback; {self._layout.metrics_targets} lists the addresses")
        self._wait_until_ready({program.name: program for program in started})

    def _wait_until_ready(self, started: Mapping[str, ChildProcess]) -> None:
        """Wait for the API and the dashboard.

        A program that exits during the start is not restarted; its log is part of the error.
        """
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        for name, url, path in (("api", "base_url", "/readyz"), ("web", "web_url", "/healthz")):
            if not started[name].wait_until(partial(self._answers, self._urls[url], path), deadline):
                status, text = http_get(self._urls[url], path)
                raise _start_error(started[name], f"{path} returns {status} {text[:500]}")

    def _answers(self, url: str, path: str) -> bool:
        """Raises StopRequested, and CannotStart if a service has exited."""
        self._stop.check()
        if exited := self._supervisor.first_exited():
            raise _start_error(exited, exited.exit_text)
        return http_get(url, path)[0] == 200

    def _write_runtime(self) -> None:
        storage = self._layout.storage_settings().model_dump(include=STORAGE_PLACE)
        root, pids = str(self._layout.root), self._supervisor.pids
        self._layout.write_runtime(
            {**self._urls, "storage": storage, "data_dir": root, "pid": os.getpid(), "pids": pids}
        )

    def _stop_all(self) -> None:
        self._layout.runtime.unlink(missing_ok=True)
        self._layout.metrics_targets.unlink(missing_ok=True)
        if self._stop.requested:
            self._report("stopping", "press Ctrl-C again to stop without waiting for jobs to save their progress")
        if self._conversion is not None:
            self._conversion.kill()
        self._supervisor.stop()
        if self._stop.requested:
            self._report("stopped", f"all processes have ended; the data is kept in {self._layout.root}")

    def _report(self, subject: str, text: str) -> None:
        _print(f"{subject:<11} {text}")


def _start_error(service: ChildProcess, reason: str) -> CannotStart:
    return CannotStart(f"The {service.name} did not become ready ({reason}). {service.end_of_log}")


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # a closed terminal or pipe must not prevent the stop
        print(line, flush=True)


@dataclass(frozen=True)
class RunningService:
    base_url: str  # without /v1
    admin_key: str
    data_dir: Path
    log: Path  # what `tunery up` printed


@contextlib.contextmanager
def running_in_background(data_dir: Path, log: Path) -> Iterator[RunningService]:
    """Start `tunery up` on any loopback port, wait until it is ready, and stop it at the end.

    It also stops if this process dies.

    The log must be outside of the data directory, which must be empty at the first start.
    """
    layout = Layout(data_dir.resolve())
    child = ChildProcess(
        "up",
        [sys.executable, "-m", "app.cli.local_stack.up", str(layout.root), "127.0.0.1", "0"],
        log,
        marker=log,
        env=child_environment(data_dir, {}),
        cwd=Path("/"),
        stop_seconds=WORKER_GRACE_SECONDS + 30,
        parent_death_signal=signal.SIGTERM,
    )
    child.start()
    try:
        if not child.wait_until(
            lambda: (layout.read_runtime() or {}).get("pid") == child.pid, time.monotonic() + BACKGROUND_START_SECONDS
        ):
            raise CannotStart(f"`tunery up` did not become ready. {child.end_of_log}")
        key = layout.admin_key.read_text(encoding="utf-8").strip()
        yield RunningService(str((layout.read_runtime() or {})["base_url"]), key, layout.root, log)
    finally:
        child.stop()


if __name__ == "__main__":
    directory, host, port = sys.argv[1:]
    raise SystemExit(run(Path(directory), host, int(port)))
