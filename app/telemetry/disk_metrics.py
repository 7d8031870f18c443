"""The free space of the data directory's disk, in every process that has one: hosts have disks of their own."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

TIMEOUT_SECONDS = 1.0


class DiskUsage(NamedTuple):
    total: int
    used: int
    free: int


class DiskMetrics(Collector):
    """A disk that fails, or a file server that hangs, costs these values and no other: a scrape waits for it for
    TIMEOUT_SECONDS, and one that hangs is not read a second time."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._space: DiskUsage | None = None
        self._thread: threading.Thread | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self._thread is None or not self._thread.is_alive():
            self._space = None
            self._thread = threading.Thread(target=self._read, name="disk-metrics", daemon=True)
            self._thread.start()
        self._thread.join(TIMEOUT_SECONDS)
        space = self._space
        if space is not None:
            yield GaugeMetricFamily(
                "tunery_data_disk_free_bytes", "Free space of the data directory's disk.", value=space.free
            )
            yield GaugeMetricFamily("tunery_data_disk_bytes", "Size of the data directory's disk.", value=space.total)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            self._space = DiskUsage(*shutil.disk_usage(self._data_dir))
