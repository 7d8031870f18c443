"""`python -m tests.schema --cases 20000`: generated requests to every operation of the OpenAPI document.

No answer is a 5xx, and every answer has a status, a content type, headers and a body that the document promises. The
service is real and seeded: most requests carry an id that is there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app.db import migrate
from app.db.engine import make_engine, make_sessions
from app.main import create_app
from app.settings import Settings
from app.storage import LocalStorage
from tests.schema.seeded import Seeded, seed
from tests.serving import LiveServer, serve
from tests.stack import start_postgres, start_valkey

CONFIG = Path(__file__).with_name("schemathesis.toml")
METHODS = ("get", "post", "put", "patch", "delete")
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
        settings = Settings(database_url=database_url, redis_url=redis_url, data_dir=directory / "data")
        storage = LocalStorage(settings.storage_dir)
        engine = make_engine(database_url)
        migrate.upgrade(engine)
        seeded = seed(make_sessions(engine), storage, directory / "models")
        engine.dispose()
        app = create_app(settings, storage=storage)
        with serve(app) as server:
            return _run(server, seeded, app.openapi(), directory, options)
    finally:
        stop_valkey()
        stop_postgres()


def _run(
    server: LiveServer, seeded: Seeded, document: dict[str, Any], directory: Path, options: argparse.Namespace
) -> int:
    """Rounds with different seeds until there were enough: how many one makes is only known afterwards."""
    report, config = directory / "report.json", directory / "schemathesis.toml"
    config.write_text(_config(seeded), encoding="utf-8")
    operations = sum(method in METHODS for item in document["paths"].values() for method in item)
    began, done = time.monotonic(), 0
    for number in range(100):
        most = max(10, math.ceil((options.cases - done) / operations))
        command = [
            *(str(Path(sys.executable).with_name("st")), "--config-file", str(config), "run"),
            *(f"{server.root}/openapi.json", "--max-examples", str(most), "--seed", str(options.seed + number)),
            *("--report", "json", "--report-json-path", str(report), *options.st),
        ]
        code = subprocess.run(command, cwd=directory, env=os.environ | {"TUNERY_KEY": seeded.key}).returncode
        done += _cases(report)
        if code != 0 or done >= options.cases:
            break
    print(f"{done:,} generated requests to {operations} operations in {time.monotonic() - began:.0f} s")
    return code


def _config(seeded: Seeded) -> str:
    """Ours, and the ids of this run's database."""
    lines = [CONFIG.read_text(encoding="utf-8"), "[dictionaries]"]
    lines += [f"{name} = {{ values = {json.dumps(values)} }}" for name, values in seeded.ids.items()]
    lines += ["[parameters]"]
    lines += [f'"path.{name}" = {{ dictionary = "{name}", probability = {OF_SEEDED_IDS} }}' for name in seeded.ids]
    return "\n".join(lines) + "\n"


def _cases(report: Path) -> int:
    return int(json.loads(report.read_text(encoding="utf-8"))["test_cases"]["generated"])


if __name__ == "__main__":
    sys.exit(main())
