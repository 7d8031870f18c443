"""The whole service as a user starts it: `tunery up` in a separate directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.deadline import until
from tests.stack import open_directory

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 300.0  # a busy machine converts the base model in minutes
ONE_THREAD = {"TUNERY_THREADS": "1"}  # a second one would wait for the cores of other tests


@contextmanager
def serving(
    environment: Mapping[str, str] = ONE_THREAD, prepare: Callable[[Service], None] | None = None
) -> Iterator[Service]:
    """Run a service in a temporary directory, which `prepare` fills, until the block ends."""
    with open_directory() as directory:
        service = Service(directory, environment)
        if prepare is not None:
            prepare(service)
        try:
            service.start()
            yield service
        finally:
            service.stop()


@dataclass
class Service:
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)  # added to the caller's environment
    code: Path = ROOT
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        inherited = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")}
        inherited["PYTHONPATH"] = str(self.code)
        command = [sys.executable, "-m", "app.cli", "up", "--data-dir", str(self.data), "--port", "0"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.code, env={**inherited, **self.environment}, stdout=log, stderr=log, text=True
            )
        until(self.is_ready, "tunery up is ready", READY_SECONDS)

    def stop(self, stop_signal: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(stop_signal)
            self.process.wait(timeout=120)
            self.process = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "up.log"

    @property
    def runtime(self) -> Path:
        """The file with `base_url`, and with the process id of every program under `pids`."""
        return self.data / "runtime.json"

    @property
    def url(self) -> str:
        return str(json.loads(self.runtime.read_text())["base_url"])

    @property
    def key(self) -> str:
        return (self.data / "admin-key").read_text().strip()

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            runtime = json.loads(self.runtime.read_text())
            return runtime["pid"] == self.process.pid and httpx2.get(f"{self.url}/readyz").is_success
        except (OSError, ValueError, KeyError, httpx2.HTTPError):
            return False

    def tunery(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of `tunery` against this service, or on its data directory."""
        command = [sys.executable, "-m", "app.cli", *arguments, "--data-dir", str(self.data)]
        environment = {**os.environ, "PYTHONPATH": str(self.code)}
        done = subprocess.run(command, cwd=self.code, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done
