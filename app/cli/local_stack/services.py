"""The programs of Tunery that `tunery up` runs, with the same commands as the containers, and their supervision:
start in order, restart after a crash, stop in reverse order.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import app
from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.machine import CannotStart, base_url, device_text, free_port, gpu_groups
from app.cli.local_stack.processes import MIN_RESTART_DELAY_SECONDS, ChildProcess

# The trainer saves its state within TUNERY_DRAIN_GRACE_SECONDS (100 s); containers have the same limit of 120 s.
WORKER_GRACE_SECONDS = 120.0
API_GRACE_SECONDS = 15.0  # open streams are closed after 5 s
WEB_GRACE_SECONDS = 10.0
RECONCILER_GRACE_SECONDS = 10.0
DELIVERIES_GRACE_SECONDS = 20.0  # an attempt that is killed is repeated
WEBHOOKS_GRACE_SECONDS = 20.0  # a running delivery attempt may take TUNERY_WEBHOOK_TIMEOUT_SECONDS, 15 s


# Settings with secrets, and the programs that read them; the names of further GPU workers begin alike.
READERS = {
    "TUNERY_SECRET_KEYS": ("api", "webhooks", "deliveries"),
    "TUNERY_OPERATOR_WEBHOOK_URL": ("webhooks",),
    "TUNERY_OPERATOR_WEBHOOK_SECRET": ("webhooks",),
    "TUNERY_ENDPOINTS": ("api", "gpu-worker"),
    "TUNERY_HUB_TOKEN": ("cpu-worker", "gpu-worker"),
    "HF_TOKEN": ("cpu-worker", "gpu-worker"),
    "TUNERY_API_KEY": (),  # of commands
}
# The dashboard and the conversion get what describes the machine and the dashboard's settings: no address and no
# credential of another server.
WITHOUT_SERVERS = ("web", "convert")
MACHINE = ("PATH", "HOME", "USER", "LANG", "LC_", "TZ", "TMPDIR", "PYTHON", "LD_", "SSL_CERT_", "XDG_CACHE_HOME")
WEB_SETTINGS = ("FORWARDED_ALLOW_IPS", "TUNERY_WEB_", "TUNERY_LOG_", "TUNERY_METRICS_")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.2
MAX_RESTART_DELAY_SECONDS = 30.0
WAIT_NOTICE_SECONDS = 2.0  # how long a stop may take before a message is printed
STABLE_RUN_SECONDS = 60.0  # a longer run resets the restart delay
Print = Callable[[str], None]


def metrics_ports(names: Sequence[str]) -> dict[str, int]:
    """A loopback port for the metrics of each program: consecutive ones from TUNERY_METRICS_PORT, else any free ones.

    Raises CannotStart if TUNERY_METRICS_PORT is not a number, or one of its ports is taken.
    """
    first = os.environ.get("TUNERY_METRICS_PORT", "")
    if not first:
        return {name: free_port("127.0.0.1", 0) for name in names}
    if not first.isdecimal():
        raise CannotStart(
            f"TUNERY_METRICS_PORT is {first!r}; give the first of {len(names)} port numbers, or unset it."
        )
    try:
        return {name: free_port("127.0.0.1", int(first) + number) for number, name in enumerate(names)}
    except CannotStart as error:
        raise CannotStart(
            f"{error} TUNERY_METRICS_PORT is the first of {len(names)} ports for metrics, one for each process."
        ) from None


def programs(data_dir: Path, host: str, port: int, web_port: int = 8001) -> list[ChildProcess]:
    """The programs with the variables that only they have: workers stop first, as they write their saved progress to
    the database, and the API after them.
    """
    layout = Layout(data_dir)

    def program(
        name: str, description: str, command: list[str], stop_seconds: float, env: Mapping[str, str] | None = None
    ) -> ChildProcess:
        return ChildProcess(
            name,
            [sys.executable, "-m", *command],
            layout.log(name),
            data_dir,
            env or {},
            description=description,
            stop_seconds=stop_seconds,
            stop_group=int(name == "api"),
        )

    api = ["app.serve", "--host", host, "--port", str(port)]
    web = {"TUNERY_WEB_API_URL": base_url(host, port), "TUNERY_WEB_HOST": host, "TUNERY_WEB_PORT": str(web_port)}
    gpu_workers = []
    for number, devices in enumerate(gpu_groups()):
        # CUDA must number the GPUs as nvidia-smi does, by PCI bus; its default order is by speed.
        env = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        name, text = f"gpu-worker-{number}" if number else "gpu-worker", f"GPU {devices}" if devices else device_text()
        command = _worker(f"gpu{number}", data_dir)
        gpu_workers.append(program(name, f"trains on {text}", command, WORKER_GRACE_SECONDS, env))
    return [
        program("api", f"listens on {host} port {port}", api, API_GRACE_SECONDS),
        program("web", f"dashboard, listens on {host} port {web_port}", ["app.web"], WEB_GRACE_SECONDS, web),
        *gpu_workers,
        program("cpu-worker", "validates datasets", _worker("cpu0", data_dir), WORKER_GRACE_SECONDS),
        program("reconciler", "recovers lost jobs", ["worker.reconciler"], RECONCILER_GRACE_SECONDS),
        program("webhooks", "delivers webhook events", ["worker.webhooks"], WEBHOOKS_GRACE_SECONDS),
        program("deliveries", "brings adapters to targets", ["worker.deliveries"], DELIVERIES_GRACE_SECONDS),
    ]


def _worker(slot: str, data_dir: Path) -> list[str]:
    """A worker with one thread (see celery_app.py). Gossip and mingling with other workers would cost a second.

    A slot takes over the jobs of an earlier slot of the same name, so the name has a digest of the data directory:
    two data directories on one host and one database must not use the same name.
    """
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:6]
    pool = ["-P", "threads", "-c", "1", "-Q", slot[:3], "-n", f"{slot}-{digest}@%h"]
    quiet = ["--without-gossip", "--without-mingle", "-l", "INFO"]
    return ["celery", "-A", "worker.celery_app", "worker", *pool, *quiet]


def child_environment(data_dir: Path, urls: Mapping[str, str]) -> dict[str, str]:
    """The environment of the programs: that of the user, such as TUNERY_ settings, with the values below."""
    source = str(Path(app.__file__).resolve().parents[1])  # a checkout that is not installed works too
    path = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"TUNERY_DATA_DIR": str(data_dir), "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    url_variables = {
        "DATABASE_URL": urls.get("database_url"),
        "REDIS_URL": urls.get("redis_url"),
        "TUNERY_WEB_URL": urls.get("web_url"),
    }
    # for trying an adapter at once, and `tunery models add` of any directory; a value of the user comes first
    defaults = {"TUNERY_TRIAL_ANSWERS": "true", "TUNERY_BASE_MODEL_DIRECTORIES": "/"}
    return {**defaults, **os.environ, **own, **{name: url for name, url in url_variables.items() if url}}


def needed_by(program: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environment` that the program needs."""

    def is_needed(name: str) -> bool:
        if program in WITHOUT_SERVERS:
            return name.startswith(MACHINE + WEB_SETTINGS)
        return name not in READERS or program.startswith(READERS[name])

    return {name: value for name, value in environment.items() if is_needed(name)}


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
        self._services: list[ChildProcess] = []

    def start(self, service: ChildProcess) -> None:
        self._stop.check()
        self._services.append(service)
        service.start()

    @property
    def pids(self) -> dict[str, int | None]:
        return {service.name: service.pid for service in self._services}

    def first_exited(self) -> ChildProcess | None:
        return next((service for service in self._services if service.exit_code is not None), None)

    def watch(self, on_restart: Callable[[], None]) -> None:
        """Restart services until a stop is requested. Calls `on_restart` after restarts, which change process ids."""
        while not self._stop.wait(POLL_SECONDS):
            if [service for service in self._services if self._restart_if_due(service)]:
                on_restart()

    def _restart_if_due(self, service: ChildProcess) -> bool:
        """Schedule the restart of an exited service, or restart it if that is due. Returns whether it was restarted."""
        now = time.monotonic()
        if service.restart_at is None and service.exit_code is not None:
            self._schedule_restart(service, now)
        if service.restart_at is None or now < service.restart_at:
            return False
        try:
            service.start()
        except (CannotStart, OSError) as error:
            self._print(f"{service.name} did not start: {error}")
            service.restart_at = time.monotonic() + service.restart_delay_seconds
            return False
        service.restart_at = None
        self._print(f"{service.name} restarted (pid {service.pid})")
        return True

    def _schedule_restart(self, service: ChildProcess, now: float) -> None:
        if now - service.started_at > STABLE_RUN_SECONDS:
            service.restart_delay_seconds = MIN_RESTART_DELAY_SECONDS
        self._print(
            f"{service.name} exited ({service.exit_text}; see {service.log}), "
            f"restarting it in {service.restart_delay_seconds:.0f} s"
        )
        service.kill()  # kills the rest of its session
        service.restart_at = now + service.restart_delay_seconds
        service.restart_delay_seconds = min(2 * service.restart_delay_seconds, MAX_RESTART_DELAY_SECONDS)

    def stop(self) -> None:
        """Stop group after group; the services of a group stop at the same time."""
        for number in sorted({service.stop_group for service in self._services}):
            group = [service for service in self._services if service.stop_group == number]
            for service in group:
                service.request_stop()
            for service in group:
                self._wait_for(service)
                service.kill()

    def _wait_for(self, service: ChildProcess) -> None:
        stop_requested_at = time.monotonic()
        is_announced = False
        while not service.wait(POLL_SECONDS):
            waited_seconds = time.monotonic() - stop_requested_at
            if self._stop.is_forced or waited_seconds > service.stop_seconds:
                self._print(f"{service.name} did not stop in time and is killed")
                return
            if not is_announced and waited_seconds > WAIT_NOTICE_SECONDS:
                is_announced = True
                self._print(f"waiting for {service.name} to save its work, at most {service.stop_seconds:.0f} s")
