"""Metrics of requests: by the template of the route, so that no client can create endless series."""

from __future__ import annotations

from prometheus_client import REGISTRY
from starlette.testclient import TestClient


def count_of(method: str, route: str, status: str) -> float:
    labels = {"method": method, "route": route, "status": status}
    return REGISTRY.get_sample_value("tunery_http_requests_total", labels) or 0


def test_requests_are_counted_by_the_template_of_their_route(client: TestClient) -> None:
    route = "/v1/fine_tuning/jobs/{job_id}"
    before = count_of("GET", route, "404")
    client.get("/v1/fine_tuning/jobs/ftjob-1")
    client.get("/v1/fine_tuning/jobs/ftjob-2")
    assert count_of("GET", route, "404") == before + 2
    assert (
        REGISTRY.get_sample_value("tunery_http_request_duration_seconds_count", {"method": "GET", "route": route}) >= 2
    )


def test_failures_of_a_route_that_had_a_request_are_counted_from_0(client: TestClient) -> None:
    client.get("/healthz")
    labels = {"method": "GET", "route": "/healthz"}
    for status in ("500", "503"):
        assert REGISTRY.get_sample_value("tunery_http_requests_total", labels | {"status": status}) == 0


def test_unknown_paths_and_methods_share_one_series(client: TestClient) -> None:
    before = count_of("unknown", "unknown", "404")
    for number in range(3):
        client.request(f"X{number}", f"/nowhere/{number}")
    assert count_of("unknown", "unknown", "404") == before + 3


def test_bytes_of_bodies_are_counted(client: TestClient) -> None:
    before = REGISTRY.get_sample_value("tunery_http_sent_bytes_total") or 0
    body = client.get("/healthz").content
    assert REGISTRY.get_sample_value("tunery_http_sent_bytes_total") == before + len(body)
