"""The time of a claim, a forecast and a read of a queue position with many queued jobs, measured on this machine."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from app.db import migrate
from app.db.engine import make_engine
from app.db.fast_reads import job_reads
from app.db.jobs import claims
from app.db.scheduling import fair_queue, queue_positions
from app.db.tables import Job
from app.domain.scheduling.fair_share import HALF_LIFE_SECONDS
from app.domain.scheduling.forecast import forecast
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.services import queue
from app.system.host import cpu_name
from tests.stack import start_postgres

PROJECTS = 200
MODELS = 5
CLAIMS = 100
OFFER = WorkerCapacity("cuda", 24 * 10**9, frozenset({"model-0", "model-1"}), frozenset({"a"}))
HISTORY = 50  # attempts of each project that are not counted yet


def main(jobs: int) -> None:
    print(f"{cpu_name()}, load {Path('/proc/loadavg').read_text().split()[0]}; {jobs:,} jobs wait, {PROJECTS} projects")
    url, stop = start_postgres()
    try:
        engine = make_engine(url)
        migrate.upgrade(engine)
        with Session(engine) as session:
            fill(session, jobs)
            measure(session)
        engine.dispose()
    finally:
        stop()


def fill(session: Session, jobs: int) -> None:
    session.execute(
        text(f"INSERT INTO projects (id, name) SELECT 'p' || n, 'p' || n FROM generate_series(1, {PROJECTS}) n")
    )
    session.execute(
        text(
            "INSERT INTO files (id, project_id, purpose, filename, bytes, sha256, storage_key) "
            "VALUES ('file-1', 'p1', 'fine-tune', 'x', 1, '', 'x')"
        )
    )
    dice = random.Random(1)
    rows = [
        {
            "id": f"ftjob-{number:06}", "project_id": f"p{dice.randint(1, PROJECTS)}", "spec": {}, "state": "queued",
            "base_model": f"model-{dice.randrange(MODELS)}", "training_file_id": "file-1",
            "priority": dice.randint(-1, 1), "needed_cuda_bytes": dice.randrange(40) * 10**9,
            "planned_seconds": 600.0, "worker_labels": ["a"],
        }
        for number in range(jobs)
    ]  # fmt: skip
    session.execute(insert(Job), rows)
    session.commit()
    session.execute(text("ANALYZE"))
    session.commit()


def measure(session: Session) -> None:
    number = 0

    def claim() -> None:
        nonlocal number
        number += 1
        assert claims.claim(session, "train", f"gpu{number}", 300, OFFER) is not None
        session.commit()

    def claim_nothing() -> None:
        nowhere = WorkerCapacity("cuda", 24 * 10**9, frozenset({"another"}), frozenset({"a"}))
        assert claims.claim(session, "train", "gpu", 300, nowhere) is None
        session.commit()

    print_times("a claim", claim, CLAIMS)
    print_times("a claim where no job fits", claim_nothing, 10)
    print_times("is anything waiting?", lambda: claims.has_claimable_job(session, "train"), CLAIMS)
    print_times("usage counted", lambda: fair_queue.count_usage(session), 10)
    waiting = fair_queue.waiting_jobs(session)
    standings = fair_queue.project_shares(session)
    slots, running_seconds = [OFFER] * 16, [60.0 * number for number in range(16)]
    placed = forecast(slots, running_seconds, waiting, standings)
    print_times("jobs read in their order", lambda: fair_queue.waiting_jobs(session), 3)
    print_times("a forecast", lambda: forecast(slots, running_seconds, waiting, standings), 3)
    print_times("its places written, all new", lambda: queue_positions.write_positions(session, placed), 1)
    print_times("its places written, unchanged", lambda: queue_positions.write_positions(session, placed), 3)
    session.commit()

    def round_after_a_claim() -> None:
        claim()
        jobs = fair_queue.waiting_jobs(session)
        queue_positions.write_positions(
            session, forecast(slots, running_seconds, jobs, fair_queue.project_shares(session))
        )
        session.commit()

    print_times("a claim and a whole round after it", round_after_a_claim, 5)
    session.commit()
    print_times("one job read with its place", lambda: job_reads.get(session, waiting[0].job_id), CLAIMS)
    print_times("the queue listed", lambda: queue.view_queue(session, "p1", True, 100, HALF_LIFE_SECONDS), 10)


def print_times(what: str, act: Callable[[], Any], times: int) -> None:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        taken.append(1000 * (time.perf_counter() - began))
    print(
        f"{what:36} median {statistics.median(taken):9.2f} ms, largest {max(taken):9.2f} ms ({times} times)", flush=True
    )
