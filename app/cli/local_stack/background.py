"""`tunery up` in a child process, for `tunery demo` and the end-to-end tests."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.processes import ChildProcess, tail
from app.cli.local_stack.services import WORKER_GRACE_SECONDS, child_environment

START_TIMEOUT_SECONDS = 180.0  # the first start converts the base model
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class RunningService:
    base_url: str  # without /v1
    admin_key: str
    data_dir: Path
    log: Path  # what `tunery up` printed


@contextlib.contextmanager
def running(data_dir: Path, log: Path, host: str = "127.0.0.1", port: int = 0) -> Iterator[RunningService]:
    """Start `tunery up`, wait until it is ready, and stop it at the end; it also stops if this process dies.

    The log must be outside of the data directory, which must be empty at the first start.
    """
    child = start_up(data_dir, log, host, port)
    try:
        yield _wait_until_ready(child, Layout(data_dir.resolve()), log)
    finally:
        child.stop(signal.SIGTERM, WORKER_GRACE_SECONDS + 30)


def start_up(data_dir: Path, log: Path, host: str, port: int) -> ChildProcess:
    command = [sys.executable, "-m", "app.cli.local_stack", str(data_dir.resolve()), host, str(port)]
    env = child_environment(data_dir, {})
    child = ChildProcess("up", command, log, marker=log, env=env, cwd=Path("/"), parent_death_signal=signal.SIGTERM)
    child.start()
    return child


def _wait_until_ready(child: ChildProcess, layout: Layout, log: Path) -> RunningService:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while (runtime := layout.read_runtime()) is None or runtime.get("pid") != child.pid:
        if child.exit_code is not None or time.monotonic() > deadline:
            raise CannotStart(f"`tunery up` did not become ready:\n{tail(log)}")
        time.sleep(POLL_SECONDS)
    key = layout.admin_key.read_text(encoding="utf-8").strip()
    return RunningService(str(runtime["base_url"]), key, layout.root, log)
