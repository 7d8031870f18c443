"""Compare the API with a bare FastAPI route with one SELECT: `make bench-api` (about 4 minutes).

Rates are taken in rounds that alternate with the bare route's, so that other work on the machine meets both; a ratio is
the median of the rounds' ratios. The last lines say of each promise whether it was met. The exit code is always 0: this
is a measurement, not a test.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import func, select

from app.db.engine import transaction
from app.db.tables import Job
from app.system.host import cpu_name
from benchmarks import api_stack, followers
from benchmarks.api_stack import Service
from benchmarks.load import Load, drive, request
from tests.stack import start_valkey

CONNECTIONS = 64
PARTS = ("polling", "unchanged", "wait", "lists", "size", "creates", "followers")
Requests = Callable[[int], Iterable[bytes]]


@dataclass
class Bench:
    tunery: Service
    small: Service
    bare_port: int
    bare_process: psutil.Process
    rounds: int
    seconds: float
    bare_rates: list[float] = field(default_factory=list)
    poll_cpu_ms: float | None = None
    verdicts: list[str] = field(default_factory=list)

    def judge(self, what: str, figure: float, wanted: str, is_met: bool, unit: str = "") -> None:
        self.verdicts.append(f"{what:58} {figure:8.2f}{unit:3} {wanted:16} {'met' if is_met else 'MISSED'}")

    def bare(self) -> Load:
        """One round of the bare route."""
        load = drive(self.bare_port, self._bare_requests, CONNECTIONS, self.seconds).only(200)
        self.bare_rates.append(load.rate)
        return load

    def ours(self, requests: Requests, service: Service | None = None, status: int = 200) -> Load:
        return drive((service or self.tunery).port, requests, CONNECTIONS, self.seconds).only(status)

    def pairs(self, one: Callable[[], Load], other: Callable[[], Load]) -> list[tuple[Load, Load]]:
        """Alternate rounds of both in changing order; the first round is a warm-up and is not counted."""
        one(), other()
        pairs_of_loads = []
        for number in range(self.rounds):
            first, second = (one, other) if number % 2 else (other, one)
            loads = first(), second()
            pairs_of_loads.append(loads if number % 2 else loads[::-1])
        return pairs_of_loads

    def _bare_requests(self, number: int) -> Iterator[bytes]:
        return endless(number, [request("GET", f"/jobs/{each}", {}) for each in sample(self.tunery, number)])


def polling(bench: Bench) -> None:
    cpu, counts = {"bare": 0.0, "ours": 0.0}, {"bare": 0, "ours": 0}

    def counted(name: str, process: psutil.Process, run: Callable[[], Load]) -> Load:
        before = process.cpu_times()
        load = run()
        cpu[name] += spent(process, before)
        counts[name] += len(load.latencies)
        return load

    pairs_of_loads = bench.pairs(
        lambda: counted("bare", bench.bare_process, bench.bare),
        lambda: counted("ours", bench.tunery.process, lambda: bench.ours(polls(bench.tunery))),
    )
    rate = show("job polling", pairs_of_loads, "bare route")
    each_ms = {name: 1e3 * cpu[name] / counts[name] for name in cpu}
    bench.poll_cpu_ms = each_ms["ours"]
    print(f"CPU of the API process a request: {each_ms['ours']:.2f} ms; the bare route's: {each_ms['bare']:.2f} ms")
    p99 = statistics.median(mine.percentile_ms(0.99) / bare.percentile_ms(0.99) for bare, mine in pairs_of_loads)
    bench.judge("polling: rate, of the bare route's", rate, ">= 2.4", rate >= 2.4)
    bench.judge("polling: p99, of the bare route's", p99, "<= 0.5", p99 <= 0.5)


def unchanged(bench: Bench) -> None:
    jobs = random.Random(7).sample(bench.tunery.job_ids, 200)
    etags = {each: etag_of(bench.tunery, each) for each in jobs}
    conditional_requests = [
        request("GET", path_of(each), bench.tunery.headers | {"If-None-Match": etag}) for each, etag in etags.items()
    ]
    full_requests = [request("GET", path_of(each), bench.tunery.headers) for each in jobs]
    pairs_of_loads = bench.pairs(
        lambda: bench.ours(lambda number: endless(number, full_requests)),
        lambda: bench.ours(lambda number: endless(number, conditional_requests), status=304),
    )
    rate = show("304s", pairs_of_loads, "200s of the same jobs")
    bench.judge("304s: rate, of full_requests answers'", rate, "> 1", rate > 1)


def wait(bench: Bench) -> None:
    """Compare the API process's CPU time for long polls of two seconds with that for short polling."""
    if bench.poll_cpu_ms is None:
        polling(bench)
    waiters, rounds, seconds = 500, 3, 2
    etags = {each: etag_of(bench.tunery, each) for each in random.Random(8).sample(bench.tunery.job_ids, 100)}
    requests = [
        request("GET", f"{path_of(each)}?wait={seconds}", bench.tunery.headers | {"If-None-Match": etag})
        for each, etag in etags.items()
    ]
    cpu = bench.tunery.process.cpu_times()
    load = drive(bench.tunery.port, lambda number: [requests[number % 100]] * rounds, waiters).only(304)
    each_ms = 1e3 * spent(bench.tunery.process, cpu) / (waiters * rounds)
    threads, connections = bench.tunery.process.num_threads(), len(bench.tunery.process.net_connections())
    print(
        f"{waiters} at once wait {seconds} s: {each_ms:.2f} ms of the API's CPU each, where one poll takes "
        f"{bench.poll_cpu_ms:.2f}; p99 {load.percentile_ms(0.99):.0f} ms; then {threads} threads, {connections} sockets"
    )
    ratio = each_ms / (30 * (bench.poll_cpu_ms or 1))
    bench.judge("?wait=30: CPU, of polling once a second", ratio, "< 1", ratio < 1)


def lists(bench: Bench) -> None:
    ids = bench.tunery.job_ids
    first = [request("GET", "/v1/fine_tuning/jobs?limit=20", bench.tunery.headers)]
    last = [request("GET", f"/v1/fine_tuning/jobs?limit=20&after={ids[30]}", bench.tunery.headers)]
    pairs_of_loads = bench.pairs(
        lambda: bench.ours(lambda _: endless(0, first)), lambda: bench.ours(lambda _: endless(0, last))
    )
    rate = show("the last page of jobs", pairs_of_loads, "the first page")
    bench.judge("list pages: rate at the end, of that at the start", rate, ">= 0.9", rate >= 0.9)


def size(bench: Bench) -> None:
    pairs_of_loads = bench.pairs(
        lambda: bench.ours(polls(bench.small), bench.small), lambda: bench.ours(polls(bench.tunery), bench.tunery)
    )
    rate = show(f"polling among {len(bench.tunery.job_ids):,} jobs", pairs_of_loads, "among 100")
    bench.judge("50,000 jobs: rate, of that with 100", rate, ">= 0.9", rate >= 0.9)


def creates(bench: Bench) -> None:
    """Create 1,000 jobs, each twice at the same time with the same idempotency key, by 16 clients."""
    if not bench.bare_rates:
        bench.bare()
    body = json.dumps({"model": "tiny", "training_file": bench.tunery.training_file_id}).encode()
    run = f"{time.time_ns()}"

    def sent(number: int) -> Iterator[bytes]:
        for job in range(number // 2, 1000, 8):  # clients 2n and 2n + 1 send the same
            headers = {"Idempotency-Key": f"{run}-{job}", "Content-Type": "application/json"}
            yield request("POST", "/v1/fine_tuning/jobs", bench.tunery.headers | headers, body)

    before = count_jobs(bench.tunery)
    load = drive(bench.tunery.port, sent, 16)
    bench.bare()
    made, ratio = count_jobs(bench.tunery) - before, load.rate / bench.bare_rates[-1]
    print(f"creates: {load.rate:.0f}/s, p99 {load.percentile_ms(0.99):.0f} ms; answers {dict(load.statuses)}")
    bench.judge(
        "2,000 creates with 1,000 keys: jobs made", made, "= 1,000", made == 1000 and set(load.statuses) == {200}
    )
    bench.judge("creates: rate, of the bare route's", ratio, ">= 0.27", ratio >= 0.27)


def follow(bench: Bench) -> None:
    delays, is_whole = followers.measure(bench.tunery, bench.tunery.sessions)
    p99 = sorted(delays)[int(0.99 * len(delays))]
    median = statistics.median(delays)
    print(f"100 followers: {len(delays):,} events, delay median {median * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms")
    bench.judge("100 followers: every event once and in order", float(is_whole), "= 1", is_whole)
    bench.judge("100 followers: p99 of the delay", p99, "< 0.5 s", p99 < 0.5, " s")


def main() -> None:
    options = parse()
    with ExitStack() as held:
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="tunery-bench-")))
        server_url = held.enter_context(api_stack.postgres())
        redis_url, stop_valkey = start_valkey()
        held.callback(stop_valkey)
        tunery = held.enter_context(api_stack.service(server_url, redis_url, "many", options.jobs, directory))
        small = held.enter_context(api_stack.service(server_url, redis_url, "few", 100, directory))
        bare_port, bare_process = held.enter_context(api_stack.bare(tunery.database_url, directory))
        print(f"{cpu_name()}, {os.cpu_count()} logical CPUs, load {os.getloadavg()[0]:.1f}; {options.jobs:,} jobs")
        bench = Bench(tunery, small, bare_port, bare_process, options.rounds, options.seconds)
        steps = dict(zip(PARTS, (polling, unchanged, wait, lists, size, creates, follow), strict=True))
        for part in options.only:
            steps[part](bench)
        print(f"load {os.getloadavg()[0]:.1f} at the end\n")
        print("\n".join(bench.verdicts))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-api", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts (all)")
    parser.add_argument("--jobs", type=int, default=50_000, help="in the table (50,000)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each (5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round (3)")
    return parser.parse_args()


def show(what: str, pairs_of_loads: list[tuple[Load, Load]], beside: str) -> float:
    """Print a line and return the median of the rounds' ratios of rates, second to first."""
    ratio = statistics.median(second.rate / first.rate for first, second in pairs_of_loads)
    rates = [statistics.median(loads[side].rate for loads in pairs_of_loads) for side in (0, 1)]
    p99s = [statistics.median(loads[side].percentile_ms(0.99) for loads in pairs_of_loads) for side in (0, 1)]
    print(
        f"{what}: {rates[1]:.0f}/s, p99 {p99s[1]:.0f} ms; {beside}: {rates[0]:.0f}/s, p99 {p99s[0]:.0f} ms; "
        f"ratio {ratio:.2f}",
        flush=True,
    )
    return ratio


def polls(service: Service) -> Requests:
    return lambda number: endless(
        number, [request("GET", path_of(each), service.headers) for each in sample(service, number)]
    )


def sample(service: Service, number: int) -> list[str]:
    return random.Random(number).sample(service.job_ids, min(200, len(service.job_ids)))


def endless(start: int, requests: list[bytes]) -> Iterator[bytes]:
    while True:
        yield requests[start % len(requests)]
        start += 1


def path_of(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}"


def etag_of(service: Service, job_id: str) -> str:
    import httpx2

    url = f"http://127.0.0.1:{service.port}{path_of(job_id)}"
    return str(httpx2.get(url, headers=service.headers, trust_env=False).headers["etag"])


def spent(process: psutil.Process, since: Any) -> float:
    """CPU seconds since those times."""
    now = process.cpu_times()
    return float(now.user + now.system - since.user - since.system)


def count_jobs(service: Service) -> int:
    with transaction(service.sessions) as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


if __name__ == "__main__":
    main()
