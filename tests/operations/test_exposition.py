"""The port of the metrics: what it serves, how often it renders, and one port for several API processes."""

from __future__ import annotations

import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from app.settings import Settings
from app.telemetry import exposition
from app.telemetry.exposition import DiskMetrics, make_metrics_app, start_metrics_server
from tests.deadline import until
from tests.serving import api_process, free_port


class CountedCollector(Collector):
    """Counts how often its values were read."""

    reads = 0

    def collect(self) -> Iterator[CounterMetricFamily]:
        self.reads += 1
        yield CounterMetricFamily("reads", "Reads of this collector.", value=self.reads)


def get(port: int, path: str = "/metrics", method: str = "GET") -> httpx2.Response:
    with httpx2.Client(trust_env=False) as client:
        return client.request(method, f"http://127.0.0.1:{port}{path}")


@pytest.fixture
def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[WSGIServer]:
    monkeypatch.setattr(exposition, "REGISTRY", CollectorRegistry())
    settings.data_dir.mkdir(exist_ok=True)
    server = start_metrics_server(settings.model_copy(update={"metrics_port": free_port()}), "api")
    assert server is not None
    yield server
    server.shutdown()
    server.server_close()


def test_metrics_are_served_in_the_text_format_of_prometheus(server: WSGIServer) -> None:
    answer = get(server.server_port)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "tunery_data_disk_bytes " in answer.text


def test_other_paths_and_methods_are_refused(server: WSGIServer) -> None:
    assert get(server.server_port, "/").status_code == 404
    assert get(server.server_port, method="POST").status_code == 405
    head = get(server.server_port, method="HEAD")
    assert (head.status_code, head.content) == (200, b"")


def test_a_hundred_scrapes_at_once_read_the_values_once() -> None:
    registry, collector, now = CollectorRegistry(), CountedCollector(), 0.0
    registry.register(collector)
    reads_before = collector.reads
    page = make_metrics_app(registry, lambda: now)

    def scrape(_: int) -> bytes:
        return b"".join(page({"PATH_INFO": "/metrics", "REQUEST_METHOD": "GET"}, lambda *_: lambda _: None))

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(scrape, range(100)))) == 1
    assert collector.reads == reads_before + 1
    now = 1.0
    scrape(0)
    assert collector.reads == reads_before + 2


def test_silent_clients_delay_no_other_scrape(server: WSGIServer) -> None:
    address = ("127.0.0.1", server.server_port)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(address))
        with ThreadPoolExecutor(8) as pool, httpx2.Client(trust_env=False) as client:
            url = f"http://127.0.0.1:{server.server_port}/metrics"
            assert {answer.status_code for answer in pool.map(lambda _: client.get(url), range(100))} == {200}


def test_a_port_that_is_in_use_costs_the_metrics_and_not_the_process(settings: Settings, server: WSGIServer) -> None:
    assert start_metrics_server(settings.model_copy(update={"metrics_port": server.server_port}), "api") is None


def test_without_a_port_there_are_no_metrics(settings: Settings) -> None:
    assert start_metrics_server(settings, "api") is None


@pytest.mark.extended("several API processes")
def test_several_api_processes_have_one_port_with_the_sum_of_their_requests(settings: Settings) -> None:
    metrics_port = free_port()
    command = (sys.executable, "-m", "app.serve", "--workers", "2")
    environment = {"TUNERY_METRICS_PORT": str(metrics_port), "TUNERY_LOG_JSON": "true"}
    with api_process(settings, command, environment) as (server, process):
        health = re.compile(r'tunery_http_requests_total\{method="GET",route="/healthz",status="200"\} (\d+)')
        sent = 20
        for _ in range(sent):  # a connection each, so that both processes get some
            assert httpx2.get(f"{server.root}/healthz", trust_env=False).status_code == 200

        def counted() -> int:
            found = health.search(get(metrics_port).text)
            return int(found[1]) if found else 0

        until(lambda: counted() > sent, "all requests in the metrics")  # with those that waited for the start
        builds = re.findall(r"^tunery_build_info\{.*\} (.+)$", get(metrics_port).text, re.M)
        assert builds == ["1.0"]
        process.terminate()  # and with it its children, which a kill would leave behind
        process.wait(60)


def free_bytes(metrics: DiskMetrics) -> float | None:
    registry = CollectorRegistry()
    registry.register(metrics)
    return registry.get_sample_value("tunery_data_disk_free_bytes")


def test_a_directory_that_cannot_be_read_has_no_values(tmp_path: Path) -> None:
    assert free_bytes(DiskMetrics(tmp_path / "nowhere")) is None


def test_a_file_server_that_hangs_is_read_once_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, calls, disk_usage = threading.Event(), [], shutil.disk_usage

    def hang(path: Path) -> object:
        calls.append(path)
        answers.wait(30)
        return disk_usage(path)

    monkeypatch.setattr(shutil, "disk_usage", hang)
    monkeypatch.setattr(exposition, "TIMEOUT_SECONDS", 0.01)
    metrics = DiskMetrics(tmp_path)
    assert [free_bytes(metrics) for _ in range(2)] == [None, None]
    assert len(calls) == 1
    answers.set()
    monkeypatch.setattr(exposition, "TIMEOUT_SECONDS", 30)
    assert (free_bytes(metrics) or 0) > 0
