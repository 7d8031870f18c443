"""Health check: `python -m worker.health gpu|cpu|reconciler|webhooks|deliveries`.

It exits 0 if that process on this host is alive, else 1.

Each process touches a heartbeat file every few seconds, and the check reads the file's age. `celery inspect ping` would
take seconds of CPU and depend on the broker; a query to PostgreSQL would report a live worker as dead when PostgreSQL
is down.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from app.log import get_logger
from app.settings import Settings

MAX_HEARTBEAT_AGE_SECONDS = 60

log = get_logger(__name__)


def write_heartbeat(settings: Settings, name: str) -> None:
    """Touch the heartbeat file. Its time is this host's time since boot: that clock is never set, and all processes and
    containers of a host share it. A data directory that fails is logged, and does not stop the process."""
    path, now = _path(settings, name), time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (now, now))
    except OSError as error:
        log.warning("heartbeat file not written", error=str(error))


def heartbeat_age_seconds(settings: Settings, name: str) -> float | None:
    """The age of the last heartbeat; None if there was none since the host booted."""
    try:
        age_seconds = time.monotonic() - _path(settings, name).stat().st_mtime
    except FileNotFoundError:
        return None
    return age_seconds if age_seconds >= 0 else None


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m worker.health gpu|cpu|reconciler|webhooks|deliveries", file=sys.stderr)
        return 1
    settings = Settings(database_url="", redis_url="")  # it connects to neither, so an operator need not set them
    try:
        age = heartbeat_age_seconds(settings, arguments[0])
    except OSError as error:
        print(f"cannot read the data directory: {error}", file=sys.stderr)
        return 1
    if age is None or age > MAX_HEARTBEAT_AGE_SECONDS:
        state = "has no heartbeat" if age is None else f"had its last heartbeat {age:.0f} s ago"
        state += f" in {settings.data_dir.resolve()} (TUNERY_DATA_DIR)"
        print(f"{arguments[0]} on {socket.gethostname()} {state}", file=sys.stderr)
        return 1
    return 0


def _path(settings: Settings, name: str) -> Path:
    """The path names the host, because hosts (each container is one) may share the data directory."""
    return settings.data_dir / "run" / f"{name}@{socket.gethostname()}.alive"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
