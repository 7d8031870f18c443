"""The HTTP port on which a process exposes its metrics to Prometheus, and the free space of the data directory's
disk, in every process that has one: hosts have disks of their own.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.log import get_logger
from app.settings import Settings, WebSettings
from app.telemetry import metrics
from app.telemetry.multiprocess import MULTIPROCESS_VARIABLE

log = get_logger(__name__)
CACHE_SECONDS = 1.0
TIMEOUT_SECONDS = 1.0


def start_metrics_server(settings: Settings | WebSettings, process: str) -> WSGIServer | None:
    """Serve the metrics of this process, in a daemon thread, if the settings name a port.

    A port that is in use costs the metrics only.
    """
    if settings.metrics_port is None:
        return None
    metrics.set_build(process)
    registry = REGISTRY
    if os.environ.get(MULTIPROCESS_VARIABLE):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    try:
        server = make_server(
            settings.metrics_host,
            settings.metrics_port,
            make_metrics_app(registry),
            server_class=_Server,
            handler_class=_Handler,
        )
    except OSError as error:
        log.warning("no metrics: their port cannot be opened", port=settings.metrics_port, error=str(error))
        return None
    if isinstance(settings, Settings):
        registry.register(DiskMetrics(settings.data_dir))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    log.info("metrics", host=settings.metrics_host, port=settings.metrics_port)
    return server


def make_metrics_app(
    registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic
) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """A WSGI application with one page, /metrics, in Prometheus's text format.

    It renders at most once in CACHE_SECONDS, as the port has no authentication. The application of prometheus_client
    renders for each request, at every path.
    """
    lock = threading.Lock()
    body, expires_at = b"", -float("inf")

    def rendered() -> bytes:
        nonlocal body, expires_at
        with lock:
            if clock() >= expires_at:
                body, expires_at = generate_latest(registry), clock() + CACHE_SECONDS
            return body

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"The metrics are at /metrics.\n"]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [("Allow", "GET, HEAD")])
            return [b""]
        content = rendered()
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST), ("Content-Length", str(len(content)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else content]

    return answer


class _Server(ThreadingWSGIServer):
    request_queue_size = 128  # with the default of 5, connections at the same moment wait a second for a repeated SYN


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that sends nothing must not hold a thread

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a scrape every few seconds is not worth a line."""


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
        self._lock = threading.Lock()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._read, name="disk-metrics", daemon=True)
                self._thread.start()
            reading = self._thread
        reading.join(TIMEOUT_SECONDS)
        space = self._space
        if space is not None and not reading.is_alive():
            yield GaugeMetricFamily(
                "tunery_data_disk_free_bytes", "Free space of the data directory's disk.", value=space.free
            )
            yield GaugeMetricFamily("tunery_data_disk_bytes", "Size of the data directory's disk.", value=space.total)

    def _read(self) -> None:
        try:
            self._space = DiskUsage(*shutil.disk_usage(self._data_dir))
        except OSError:
            self._space = None
