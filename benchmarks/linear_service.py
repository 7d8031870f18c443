"""Ask every operation with a body of a running API at four sizes, and `/healthz` all the time.

The CPU time of the API's process is fitted against the size; a slope of MAX_EXPONENT or more fails, and so does an
answer of `/healthz` that takes longer than MAX_STALL_SECONDS. What fails is asked again, as the machine may do other
work; the least of all times counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import httpx2

from app.db.engine import transaction
from app.services.access import keys
from benchmarks import api_stack
from benchmarks.api_stack import Service
from benchmarks.growth import MAX_EXPONENT, Growth
from benchmarks.linear_bodies import EXCEPTIONS, Body, bodies
from tests.factories import make_project
from tests.stack import open_directory, start_valkey

STEPS = (64, 16, 4, 1)  # the four sizes are the largest one divided by these
FLOOR_SECONDS = 0.1  # the kernel counts in steps of 0.01 s
ATTEMPTS = 4
MAX_STALL_SECONDS = 1.0
PAUSE_SECONDS = 0.02
ADMIN = "/v1/organization"


@dataclass(frozen=True)
class Asked:
    growth: Growth
    status: int
    stall_seconds: float

    @property
    def is_bad(self) -> bool:
        exponent = self.growth.exponent
        return self.stall_seconds > MAX_STALL_SECONDS or (exponent is not None and exponent >= MAX_EXPONENT)

    def least(self, other: Asked) -> Asked:
        seconds = [min(pair) for pair in zip(self.growth.seconds, other.growth.seconds, strict=True)]
        stall_seconds = min(self.stall_seconds, other.stall_seconds)
        return Asked(replace(self.growth, seconds=seconds), other.status, stall_seconds)


def check(only: str) -> int:
    """The number of operations that fail; `only` is a part of the names of those that are asked."""
    with _service() as (service, admin):
        client = httpx2.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=600)
        document = client.get("/openapi.json", headers=service.headers).json()
        known = {"model": "tiny", "training_file": service.training_file_id}
        print(f"\n| {'operation':53} | {'body':60} | status | ms at 1/64 | largest | stall ms | exponent |")
        print("|---|---|---:|---:|---:|---:|---:|")
        failed = 0
        for body in bodies(document, known):
            if only in body.operation.lower():
                asked = _ask(client, service, admin, body)
                for _ in range(ATTEMPTS - 1):
                    asked = asked.least(_ask(client, service, admin, body)) if asked.is_bad else asked
                failed += asked.is_bad
                _print(body, asked)
        for operation, reason in EXCEPTIONS.items():
            print(f"| {operation:53} | not asked: {reason} |")
    return failed


def _ask(client: httpx2.Client, service: Service, admin: str, body: Body) -> Asked:
    method, path = body.operation.split()
    url = path.replace("{job_id}", service.job_ids[0]).replace("{", "").replace("}", "")
    headers = {"Authorization": f"Bearer {admin}"} if path.startswith(ADMIN) else service.headers
    headers = headers | {"Content-Type": "application/json"}
    sizes = [body.most_bytes // step for step in STEPS]
    seconds = []
    with _watched(service.port) as stalls:
        for size in sizes:
            data = body.make(size)
            before = _cpu_seconds(service)
            status = client.request(method, url, content=data, headers=headers).status_code
            seconds.append(_cpu_seconds(service) - before)
    return Asked(Growth(sizes, seconds, FLOOR_SECONDS, min_points=2), status, max(stalls))


def _cpu_seconds(service: Service) -> float:
    times = service.process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def _watched(port: int) -> Iterator[list[float]]:
    """The response times of `/healthz` while the block lasts, and until its last one has ended."""
    stalls: list[float] = [0.0]
    ended = threading.Event()

    def watch() -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            while not ended.wait(PAUSE_SECONDS):
                began = time.monotonic()
                client.get("/healthz").raise_for_status()
                stalls.append(time.monotonic() - began)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield stalls
    finally:
        ended.set()
        thread.join()


@contextmanager
def _service() -> Iterator[tuple[Service, str]]:
    """An API with one job, and the secret of an admin key."""
    with ExitStack() as stack:
        redis_url, stop_valkey = start_valkey()
        stack.callback(stop_valkey)
        directory, server_url = stack.enter_context(open_directory()), stack.enter_context(api_stack.postgres())
        service = stack.enter_context(api_stack.service(server_url, redis_url, "linear", 2, directory))
        with transaction(service.sessions) as session:
            admin = keys.issue(session, make_project(session, "operators"), "admin", keys.ADMIN_SCOPES).secret
        yield service, admin


def _print(body: Body, asked: Asked) -> None:
    exponent, times = asked.growth.exponent, asked.growth.seconds
    shown = "too quick" if exponent is None else f"{exponent:.2f}"
    figures = f"{times[0] * 1000:10.0f} | {times[-1] * 1000:7.0f} | {asked.stall_seconds * 1000:8.0f}"
    print(
        f"| {body.operation:53} | {body.name:60} | {asked.status:6} | {figures} | {shown}{' !' * asked.is_bad} |",
        flush=True,
    )
