"""Metrics of several API processes on one port (`python -m app.serve --workers 4`).

The processes share their metrics through files in a directory, which prometheus_client looks for at its first import;
so this module does not import it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def shared_metrics(processes: int) -> Iterator[None]:
    """Give the child processes that are started within the block a directory for their metrics, if there are several.

    Call it before the first import of `app.telemetry.metrics` in this process.
    """
    if processes < 2 or os.environ.get(MULTIPROCESS_VARIABLE):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tunery-metrics-") as directory:
        os.environ[MULTIPROCESS_VARIABLE] = directory
        try:
            yield
        finally:
            del os.environ[MULTIPROCESS_VARIABLE]


def worker_count(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """The number of processes in uvicorn's command line, else in its environment; 1 for what uvicorn will refuse."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workers", nargs="?", default=environment.get("WEB_CONCURRENCY", "1"))
    count = parser.parse_known_args(arguments)[0].workers or ""
    return int(count) if count.isdecimal() else 1
