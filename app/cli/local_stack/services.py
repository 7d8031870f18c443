"""The programs of Tunery that `tunery up` runs, with the same commands as the containers."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import app
from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.hardware import device_text, gpu_groups
from app.cli.local_stack.ports import base_url, free_port

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


@dataclass(frozen=True)
class Program:
    name: str
    description: str
    command: list[str]
    grace_seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


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


def programs(data_dir: Path, host: str, port: int, web_port: int = 8001) -> list[Program]:
    reconciler = [sys.executable, "-m", "worker.reconciler"]
    webhooks = [sys.executable, "-m", "worker.webhooks"]
    deliveries = [sys.executable, "-m", "worker.deliveries"]
    return [
        Program("api", f"listens on {host} port {port}", _api(host, port), API_GRACE_SECONDS),
        _web(host, port, web_port),
        *(_gpu_worker(number, visible_devices, data_dir) for number, visible_devices in enumerate(gpu_groups())),
        Program("cpu-worker", "validates datasets", _worker("cpu0", data_dir), WORKER_GRACE_SECONDS),
        Program("reconciler", "recovers lost jobs", reconciler, RECONCILER_GRACE_SECONDS),
        Program("webhooks", "delivers webhook events", webhooks, WEBHOOKS_GRACE_SECONDS),
        Program("deliveries", "brings adapters to targets", deliveries, DELIVERIES_GRACE_SECONDS),
    ]


def _api(host: str, port: int) -> list[str]:
    return [sys.executable, "-m", "app.serve", "--host", host, "--port", str(port)]


def _web(host: str, port: int, web_port: int) -> Program:
    """The dashboard, a client of the API."""
    environment = {
        "TUNERY_WEB_API_URL": base_url(host, port),
        "TUNERY_WEB_HOST": host,
        "TUNERY_WEB_PORT": str(web_port),
    }
    command = [sys.executable, "-m", "app.web"]
    description = f"dashboard, listens on {host} port {web_port}"
    return Program("web", description, command, WEB_GRACE_SECONDS, environment)


def _gpu_worker(number: int, visible_devices: str | None, data_dir: Path) -> Program:
    """A GPU worker. CUDA must number the GPUs as nvidia-smi does, by PCI bus; its default order is by speed."""
    name = f"gpu-worker-{number}" if number else "gpu-worker"
    environment = (
        {} if visible_devices is None else {"CUDA_VISIBLE_DEVICES": visible_devices, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    )
    device = device_text() if visible_devices is None else f"GPU {visible_devices}"
    return Program(name, f"trains on {device}", _worker(f"gpu{number}", data_dir), WORKER_GRACE_SECONDS, environment)


def _worker(slot: str, data_dir: Path) -> list[str]:
    """A worker with one thread (see celery_app.py). Gossip and mingling with other workers would cost a second.

    A slot takes over the jobs of an earlier slot of the same name, so the name has a digest of the data directory:
    two data directories on one host and one database must not use the same name.
    """
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:6]
    pool = ["-P", "threads", "-c", "1", "-Q", slot[:3], "-n", f"{slot}-{digest}@%h"]
    quiet = ["--without-gossip", "--without-mingle", "-l", "INFO"]
    return [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker", *pool, *quiet]


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
    defaults = {"TUNERY_TRIAL_ANSWERS": "true"}  # for trying an adapter at once; a value of the user comes first
    return {**defaults, **os.environ, **own, **{name: url for name, url in url_variables.items() if url}}


def needed_by(program: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environment` that the program needs."""

    def is_needed(name: str) -> bool:
        if program in WITHOUT_SERVERS:
            return name.startswith(MACHINE + WEB_SETTINGS)
        return name not in READERS or program.startswith(READERS[name])

    return {name: value for name, value in environment.items() if is_needed(name)}
