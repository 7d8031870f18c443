"""`python -m tests.schema --cases 20000`: generated requests to every operation of the OpenAPI document.

No response is a 5xx, and every response has a documented status, content type, headers and body. The service is real
and seeded: most requests have an existing id.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from app.api.routes import polling
from app.db import migrate
from app.db.engine import make_engine, make_sessions
from app.main import create_app
from app.settings import Settings
from app.storage import LocalStorage
from tests.receiver import receiving
from tests.schema.seed_over_http import PROJECTS, seed_over_http
from tests.schema.seeded import Seeded, seed
from tests.schema.short_streams import WAIT_SECONDS, ShortStreams
from tests.serving import LiveServer, serve
from tests.stack import start_postgres, start_valkey
from worker.node.resources import open_resources
from worker.webhooks.sender import WebhookSender

CONFIG = Path(__file__).with_name("schemathesis.toml")
METHODS = ("get", "post", "put", "patch", "delete")
ADMIN = f"^({PROJECTS}|/v1/organization/audit_logs)"
CREATE = "^/v1/fine_tuning/jobs(/plan)?$"  # with thousands of rules, as many as all others together
CLONE = "/clone$"
ONE_BY_ONE = ("--phases", "examples,coverage,fuzzing")
# Each a process of its own at the same time: one is idle nine tenths of its time, and two threads of one break Python
# 3.11's parser. What admins do goes without sequences of requests: one would archive the project and revoke the key of
# all the others.
PARTS = (
    ("--include-path-regex", CREATE, *ONE_BY_ONE),
    ("--include-path-regex", CLONE, *ONE_BY_ONE),
    ("--include-path-regex", ADMIN, *ONE_BY_ONE),
    ("--exclude-path-regex", f"{ADMIN}|{CREATE}|{CLONE}", *ONE_BY_ONE),
    ("--exclude-path-regex", ADMIN, "--phases", "stateful"),
)
WEBHOOKS: dict[str, Any] = {  # short timeouts: unreachable endpoints are not tested here
    "webhook_allow_http": True,
    "webhook_allowed_networks": "127.0.0.0/8",
    "webhook_connect_seconds": 0.5,
    "webhook_timeout_seconds": 1.0,
    "webhook_poll_seconds": 0.05,
}
OF_SEEDED_IDS = 0.7  # the share of requests whose id is there


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.schema", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, help="how many requests at least")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same requests")
    parser.add_argument("st", nargs="*", help="after `--`: arguments for `st run`, such as --include-path /v1/files")
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "*"
    with tempfile.TemporaryDirectory(prefix="tunery-schema-") as directory:
        return _with_servers(Path(directory), options)


def _with_servers(directory: Path, options: argparse.Namespace) -> int:
    database_url, stop_postgres = start_postgres()
    redis_url, stop_valkey = start_valkey()
    try:
        settings = Settings(database_url=database_url, redis_url=redis_url, data_dir=directory / "data", **WEBHOOKS)
        storage = LocalStorage(settings.storage_dir)
        engine = make_engine(database_url)
        migrate.upgrade(engine)
        seeded = seed(make_sessions(engine), storage, directory / "models")
        engine.dispose()
        polling.MAX_WAIT_SECONDS = WAIT_SECONDS
        app = create_app(settings, storage=storage)
        document = app.openapi()
        app.add_middleware(ShortStreams)
        with _sender(settings), receiving() as receiver, serve(app) as server:
            seed_over_http(server, seeded, receiver.url)
            return _run(server, seeded, document, directory, options)
    finally:
        stop_valkey()
        stop_postgres()


@contextlib.contextmanager
def _sender(settings: Settings) -> Iterator[None]:
    """Of webhooks, as `tunery up` has one: a test of an endpoint waits for it."""
    resources = open_resources(settings)
    thread = threading.Thread(target=WebhookSender(resources).run)
    thread.start()
    try:
        yield
    finally:
        resources.stop.set()
        thread.join()
        resources.close()


def _run(
    server: LiveServer, seeded: Seeded, document: dict[str, Any], directory: Path, options: argparse.Namespace
) -> int:
    """Rounds with different seeds until there were enough: how many one makes is only known afterwards."""
    config = directory / "schemathesis.toml"
    config.write_text(_config(seeded), encoding="utf-8")
    # A file, because schemathesis gives up a server that takes 10 s for the document, as a busy machine may.
    (directory / "openapi.json").write_text(json.dumps(document), encoding="utf-8")
    operations = sum(method in METHODS for item in document["paths"].values() for method in item)
    began, done, code = time.monotonic(), 0, 0
    for number in range(100):
        most = max(10, math.ceil((options.cases - done) / operations))
        begin = partial(_begin, server, seeded, config, most, options.seed + number)
        begun = [begin(directory / f"part-{at}", part) for at, part in enumerate([options.st] if options.st else PARTS)]
        for process, where in begun:
            code |= process.wait()
            print((where / "output").read_text(encoding="utf-8"), flush=True)
            done += _cases(where / "report.json")
        if code != 0 or done >= options.cases:
            break
    print(f"{done:,} generated requests to {operations} operations in {time.monotonic() - began:.0f} s")
    return code


def _begin(
    server: LiveServer, seeded: Seeded, config: Path, most: int, seed: int, where: Path, more: Sequence[str]
) -> tuple[subprocess.Popen[bytes], Path]:
    """A process, and the directory of its output and its report."""
    where.mkdir(exist_ok=True)
    command = [
        *(str(Path(sys.executable).with_name("st")), "--config-file", str(config), "run"),
        *(str(config.with_name("openapi.json")), "--url", server.root),
        *("--max-examples", str(most), "--seed", str(seed)),
        *("--report", "json", "--report-json-path", str(where / "report.json"), *more),
    ]
    with (where / "output").open("wb") as output:
        environment = os.environ | {"TUNERY_KEY": seeded.key}
        return subprocess.Popen(command, cwd=where, env=environment, stdout=output, stderr=subprocess.STDOUT), where


def _config(seeded: Seeded) -> str:
    """Ours, and the ids of this run's database."""
    lines = [CONFIG.read_text(encoding="utf-8")]
    for number, (path, (parameter, owner)) in enumerate(seeded.owners.items()):
        seeded.ids[f"owner_{number}"] = [owner]
        lines += ["[[operations]]", f"include-path = {json.dumps(path)}", "[operations.parameters]"]
        lines += [_draw(parameter, f"owner_{number}")]
    lines += ["[dictionaries]"]
    lines += [f"{name} = {{ values = {json.dumps(values)} }}" for name, values in seeded.ids.items()]
    lines += ["[parameters]"]
    lines += [_draw(name, name) for name in seeded.ids if not name.startswith("owner_")]
    return "\n".join(lines) + "\n"


def _draw(parameter: str, dictionary: str) -> str:
    return f'"path.{parameter}" = {{ dictionary = "{dictionary}", probability = {OF_SEEDED_IDS} }}'


def _cases(report: Path) -> int:
    return int(json.loads(report.read_text(encoding="utf-8"))["test_cases"]["generated"])


if __name__ == "__main__":
    sys.exit(main())
