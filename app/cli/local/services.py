"""The four programs of Tunery that `tunery up` runs, exactly as the containers run them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import app

# A worker asks its trainer to save and waits for it (TUNERY_DRAIN_GRACE_SECONDS, 100 s); containers give it 120 s too.
WORKER_GRACE_SECONDS = 120.0
API_GRACE_SECONDS = 15.0  # open streams are cut after 5
RECONCILER_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Program:
    name: str
    does: str
    command: Callable[[str, int], list[str]]  # of host and port
    grace_seconds: float


def _api(host: str, port: int) -> list[str]:
    listen = ["--host", host, "--port", str(port), "--timeout-graceful-shutdown", "5"]
    return [sys.executable, "-m", "uvicorn", "--factory", "app.main:app_from_environment", *listen]


def _worker(queue: str, slots: int) -> list[str]:
    """Threads for both: prefork would leave pool processes behind when its parent is killed with -9."""
    pool = ["-P", "threads", "-c", str(slots), "-Q", queue, "-n", f"{queue}@%h"]
    quiet = ["--without-gossip", "--without-mingle", "-l", "INFO"]  # mingling costs a second, and nobody is there
    return [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker", *pool, *quiet]


SERVICES = (
    Program("api", "", _api, API_GRACE_SECONDS),
    Program("gpu-worker", "one job at a time", lambda _host, _port: _worker("gpu", 1), WORKER_GRACE_SECONDS),
    Program(
        "cpu-worker", "checks datasets, two at a time", lambda _host, _port: _worker("cpu", 2), WORKER_GRACE_SECONDS
    ),
    Program(
        "reconciler",
        "finds what was lost",
        lambda _host, _port: [sys.executable, "-m", "worker.reconciler"],
        RECONCILER_GRACE_SECONDS,
    ),
)


def child_environment(data_dir: Path, urls: Mapping[str, str]) -> dict[str, str]:
    """Ours on top of the user's: a TUNERY_ setting in the shell reaches every program."""
    source = str(Path(app.__file__).resolve().parents[1])  # a checkout that is not installed works too
    path = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"TUNERY_DATA_DIR": str(data_dir), "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    named = {"DATABASE_URL": urls.get("database_url"), "REDIS_URL": urls.get("redis_url")}
    return {**os.environ, **ours, **{name: url for name, url in named.items() if url}}
