"""Is the process on this host alive? `python -m worker.health gpu|cpu|reconciler|webhooks` exits 0 if it is, else 1.

Whoever does the work touches a file every few seconds; the check looks how old it is. `celery inspect ping` would cost
seconds of CPU and go through the broker, and a question to PostgreSQL would call a worker dead when PostgreSQL is.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from app.settings import Settings, load_settings

FRESH_SECONDS = 60


def beat(settings: Settings, name: str) -> None:
    """A sign of life. The time is ours and not that of a file server, since we compare it with ours."""
    path = _path(settings, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    now = time.time()
    os.utime(path, (now, now))


def age_seconds(settings: Settings, name: str) -> float | None:
    """How old the last sign of life is; None if there was none."""
    try:
        return time.time() - _path(settings, name).stat().st_mtime
    except FileNotFoundError:
        return None


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m worker.health gpu|cpu|reconciler|webhooks", file=sys.stderr)
        return 1
    try:
        age = age_seconds(load_settings(), arguments[0])
    except OSError as error:
        print(f"the data directory can't be read: {error}", file=sys.stderr)
        return 1
    if age is None or age > FRESH_SECONDS:
        seen = "has given no sign of life" if age is None else f"gave its last sign of life {age:.0f} s ago"
        print(f"{arguments[0]} on {socket.gethostname()} {seen}", file=sys.stderr)
        return 1
    return 0


def _path(settings: Settings, name: str) -> Path:
    """A container has a host name of its own, so hosts may share the data directory."""
    return settings.data_dir / "run" / f"{name}@{socket.gethostname()}.alive"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
