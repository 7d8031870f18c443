"""The programs of Tunery that `tunery up` runs, exactly as the containers run them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import app
from app.cli.local_stack.hardware import device, gpu_groups

# A worker asks its trainer to save and waits for it (TUNERY_DRAIN_GRACE_SECONDS, 100 s); containers give it 120 s too.
WORKER_GRACE_SECONDS = 120.0
API_GRACE_SECONDS = 15.0  # open streams are cut after 5
RECONCILER_GRACE_SECONDS = 10.0
WEBHOOKS_GRACE_SECONDS = 20.0  # a try in hand may take TUNERY_WEBHOOK_TIMEOUT_SECONDS, 15 s


@dataclass(frozen=True)
class Program:
    name: str
    does: str
    command: list[str]
    grace_seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


def programs(data_dir: Path, host: str, port: int) -> list[Program]:
    reconciler = [sys.executable, "-m", "worker.reconciler"]
    webhooks = [sys.executable, "-m", "worker.webhooks"]
    return [
        Program("api", f"listens on {host} port {port}", _api(host, port), API_GRACE_SECONDS),
        *(_gpu_worker(number, visible, data_dir) for number, visible in enumerate(gpu_groups())),
        Program("cpu-worker", "checks datasets", _worker("cpu0", data_dir), WORKER_GRACE_SECONDS),
        Program("reconciler", "finds jobs that were lost", reconciler, RECONCILER_GRACE_SECONDS),
        Program("webhooks", "tells webhook endpoints of events", webhooks, WEBHOOKS_GRACE_SECONDS),
    ]


def _api(host: str, port: int) -> list[str]:
    return [sys.executable, "-m", "app.serve", "--host", host, "--port", str(port)]


def _gpu_worker(number: int, visible: str | None, data_dir: Path) -> Program:
    """nvidia-smi counts GPUs by their place on the bus, CUDA by speed unless it is told otherwise."""
    name = f"gpu-worker-{number}" if number else "gpu-worker"
    own = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    on = device() if visible is None else f"GPU {visible}"
    return Program(name, f"trains on {on}", _worker(f"gpu{number}", data_dir), WORKER_GRACE_SECONDS, own)


def _worker(slot: str, data_dir: Path) -> list[str]:
    """One thread, as celery_app.py explains. Gossip and mingling cost a second, and there is nobody to talk to.

    A slot reaps what its namesake held, so its name says which data directory it belongs to: two on one host and one
    database would otherwise take each other for dead.
    """
    home = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:6]
    pool = ["-P", "threads", "-c", "1", "-Q", slot[:3], "-n", f"{slot}-{home}@%h"]
    quiet = ["--without-gossip", "--without-mingle", "-l", "INFO"]
    return [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker", *pool, *quiet]


def child_environment(data_dir: Path, urls: Mapping[str, str]) -> dict[str, str]:
    """Ours on top of the user's: a TUNERY_ setting in the shell reaches every program."""
    source = str(Path(app.__file__).resolve().parents[1])  # a checkout that is not installed works too
    path = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"TUNERY_DATA_DIR": str(data_dir), "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    named = {"DATABASE_URL": urls.get("database_url"), "REDIS_URL": urls.get("redis_url")}
    return {**os.environ, **ours, **{name: url for name, url in named.items() if url}}
