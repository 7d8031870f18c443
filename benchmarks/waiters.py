"""Five hundred clients wait for one job with one key: measures the time from its change to the last response.

python -m benchmarks.waiters
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import text

from app.db.engine import Sessions, transaction
from app.db.tables import Job
from benchmarks.api_stack import Service, postgres, service
from benchmarks.load import request
from benchmarks.table import machine
from tests.factories import append_step_event, start_job
from tests.stack import start_valkey

WAITERS = 500
ROUNDS = 5
IDLE_SECONDS = 1.0  # without work of the API: all of them wait
STATEMENTS = "SELECT sum(xact_commit) FROM pg_stat_database WHERE datname = current_database()"


def main() -> None:
    print(f"{machine()}; {WAITERS} wait for one job")
    redis_url, stop_valkey = start_valkey()
    try:
        with (
            tempfile.TemporaryDirectory() as directory,
            postgres() as url,
            service(url, redis_url, "waiters", 1_000, Path(directory)) as served,
        ):
            sessions = served.sessions
            with transaction(sessions) as session:
                job = start_job(session)
            rounds = [asyncio.run(_round(served, sessions, job, step)) for step in range(1, ROUNDS + 1)]
    finally:
        stop_valkey()
    columns = zip(*rounds, strict=True)
    for what, values in zip(("first answer", "median", "last answer", "CPU of the API"), columns, strict=False):
        print(f"{what:16} median {1e3 * statistics.median(values):7.1f} ms, largest {1e3 * max(values):7.1f} ms")
    print(f"transactions     median {statistics.median(each[-1] for each in rounds):7.0f} a change")


async def _round(served: Service, sessions: Sessions, job: Job, step: int) -> tuple[float, ...]:
    """Seconds from before the change to the first, the median and the last answer; CPU seconds; transactions."""
    path = f"/v1/fine_tuning/jobs/{job.id}"
    etag = await _etag(served, path)
    waiting = [asyncio.create_task(_wait(served, path, etag)) for _ in range(WAITERS)]
    await _idle(served)
    assert not any(task.done() for task in waiting), "a request did not wait"
    before, cpu = _transactions(sessions), served.process.cpu_times().user
    began = time.perf_counter()
    await asyncio.to_thread(_change, sessions, job, step)
    answers = await asyncio.gather(*waiting)
    cpu_seconds = served.process.cpu_times().user - cpu
    assert {status for status, _ in answers} == {b"200"}
    seconds = sorted(at - began for _, at in answers)
    await asyncio.sleep(1.5)  # PostgreSQL counts with a delay
    return seconds[0], statistics.median(seconds), seconds[-1], cpu_seconds, _transactions(sessions) - before


async def _idle(served: Service) -> None:
    before = -1.0
    while served.process.cpu_times().user - before > 0.02:
        before = served.process.cpu_times().user
        await asyncio.sleep(IDLE_SECONDS)


async def _wait(served: Service, path: str, etag: str) -> tuple[bytes, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request("GET", f"{path}?wait=60", served.headers | {"If-None-Match": etag}))
    status = (await reader.readuntil(b"\r\n"))[9:12]
    at = time.perf_counter()
    writer.close()
    return status, at


async def _etag(served: Service, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request("GET", path, served.headers))
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    return next(line.split(": ", 1)[1] for line in head.splitlines() if line.lower().startswith("etag: "))


def _change(sessions: Sessions, job: Job, step: int) -> None:
    with transaction(sessions) as session:
        append_step_event(session, session.get_one(Job, job.id), step, 100)


def _transactions(sessions: Sessions) -> int:
    with transaction(sessions) as session:
        return int(session.scalar(text(STATEMENTS)) or 0)


if __name__ == "__main__":
    main()
