"""A hundred clients follow one job's event stream: measures the delay and checks that each event arrives once."""

from __future__ import annotations

import asyncio
import re
import threading
import time

from app.db.engine import Sessions, transaction
from app.db.jobs import claims
from app.db.jobs.leases import lease_of
from app.db.tables import Job
from benchmarks.api_stack import Service
from benchmarks.load import request
from tests.factories import start_job

FOLLOWERS = 100
EVENTS = 200
EVENTS_A_SECOND = 20.0
FRAME = re.compile(rb'"sent_at":([0-9.]+)[^\n]*\nid: (\d+)\n')
RETRY_TIMEOUT_SECONDS = 120.0


def measure(service: Service, sessions: Sessions) -> tuple[list[float], bool]:
    """Seconds from each write to its arrival at every follower, and whether each received all once, in order."""
    with transaction(sessions) as session:
        job = start_job(session)
        first = job.event_seq + 1
    events = asyncio.run(_follow(service, sessions, job))
    wanted = list(range(first, first + EVENTS))
    delays = [arrived - sent_at for each in events for _, sent_at, arrived in each]
    return delays, all([seq for seq, _, _ in each] == wanted for each in events)


async def _follow(service: Service, sessions: Sessions, job: Job) -> list[list[tuple[int, float, float]]]:
    """(number, sent at, received at) of each event, for each follower."""
    ready: list[asyncio.Event] = [asyncio.Event() for _ in range(FOLLOWERS)]
    followers = [asyncio.create_task(_one(service, job, event)) for event in ready]
    await asyncio.gather(*(event.wait() for event in ready))
    writer = threading.Thread(target=_tell, args=(sessions, job))
    writer.start()
    async with asyncio.timeout(RETRY_TIMEOUT_SECONDS):
        events = await asyncio.gather(*followers)
    writer.join()
    return events


async def _one(service: Service, job: Job, ready: asyncio.Event) -> list[tuple[int, float, float]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    headers = service.headers | {"Last-Event-ID": str(job.event_seq)}
    writer.write(request("GET", f"/v1/fine_tuning/jobs/{job.id}/events/stream", headers))
    events: list[tuple[int, float, float]] = []
    received = b""
    while len(events) < EVENTS:
        received += await reader.read(1 << 16)
        arrived = time.time()
        if b"retry:" in received:
            ready.set()
        end = 0
        for match in FRAME.finditer(received):
            events.append((int(match[2]), float(match[1]), arrived))
            end = match.end()
        received = received[end:]
    writer.close()
    return events


def _tell(sessions: Sessions, job: Job) -> None:
    for number in range(EVENTS):
        with transaction(sessions) as session:
            claims.append_event(session, lease_of(job), f"Step {number}", data={"sent_at": time.time()})
        time.sleep(1 / EVENTS_A_SECOND)
