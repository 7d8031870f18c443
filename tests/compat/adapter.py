"""`python adapter.py MODULE ARGUMENTS`, in the checkout: run a module of the earlier tests against today's service.

The project code that the earlier tests import is the code of their own commit: it writes the rows and the files that
they need. What they start is today's service, as processes, by the entry points that operators use. No other name of
today's code is known here.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECKOUT = Path.cwd()
LOG = CHECKOUT / "service.log"

API = ("-m", "app.serve")
API_WITH_SHORT_WAITS = (str(HERE / "short_waits.py"), str(CHECKOUT))
MIGRATE = ("-m", "app.db.migrate")
WEBHOOKS = ("-m", "worker.webhooks")

START_SECONDS = 300.0
STOP_SECONDS = 120.0


def main() -> None:
    sys.argv = sys.argv[1:]
    sys.path[:1] = [str(CHECKOUT), str(CHECKOUT / "project")]
    except_response_fields(document())  # made and kept before the application is replaced
    replace_services()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def document() -> dict[str, Any]:
    """The earlier OpenAPI document: the tests take their examples from it and hold every response to it."""
    found: dict[str, Any] = importlib.import_module("app.api.reference.__main__").document()
    return found


def except_response_fields(document: dict[str, Any]) -> None:
    for excepted in tomllib.loads((HERE / "exceptions.toml").read_text(encoding="utf-8"))["response_field"]:
        document["components"]["schemas"][excepted["schema"]]["properties"][excepted["field"]] = {}


def replace_services() -> None:
    for module, name, replacement in (
        ("app.main", "create_app", Api),
        ("app.db.migrate", "upgrade", upgrade),
        ("tests.serving", "serve", serve),
        ("worker.webhooks", "Sender", Sender),
    ):
        setattr(importlib.import_module(module), name, replacement)


class Api:
    """What tests make as their application and give to `serve`."""

    def __init__(self, settings: Any, storage: Any = None) -> None:
        self.settings = settings
        self.command = API
        self.openapi = document

    def add_middleware(self, middleware: type) -> None:
        if middleware.__name__ != "BriefStreams":
            raise NotImplementedError(f"{middleware} cannot be added to another process; only BriefStreams can")
        path = Path(self.settings.data_dir).with_name("openapi.json")
        path.write_text(json.dumps(document()), encoding="utf-8")
        self.command = (*API_WITH_SHORT_WAITS, str(path))


@contextmanager
def serve(api: Api) -> Iterator[Any]:
    """The API on a free loopback port until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = importlib.import_module("tests.serving").LiveServer(*listener.getsockname())
        descriptor = listener.fileno()
        process = start([*api.command, "--fd", str(descriptor)], api.settings, pass_fds=[descriptor])
    try:
        httpx2.get(f"{server.root}/healthz", timeout=START_SECONDS, trust_env=False).raise_for_status()
        yield server
    finally:
        stop(process)


class Sender:
    """The process that sends webhooks."""

    def __init__(self, resources: Any) -> None:
        self.resources = resources

    def run(self) -> None:
        process = start(WEBHOOKS, self.resources.settings)
        self.resources.stop.wait()
        stop(process)


def upgrade(engine: Any) -> None:
    urls = {"DATABASE_URL": engine.url.render_as_string(hide_password=False), "REDIS_URL": "redis://nowhere"}
    subprocess.run([sys.executable, *MIGRATE], cwd=ROOT, env=os.environ | urls, check=True, stdout=subprocess.DEVNULL)
    with engine.connect() as connection:
        revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
    importlib.import_module("app.db.migrate").head = lambda: revision


def start(arguments: Sequence[str], settings: Any, **options: Any) -> subprocess.Popen[bytes]:
    given = {name: str(getattr(settings, name)) for name in settings.model_fields_set}
    urls = {"DATABASE_URL": given.pop("database_url"), "REDIS_URL": given.pop("redis_url")}
    environment = os.environ | urls | {f"TUNERY_{name.upper()}": value for name, value in given.items()}
    with LOG.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log, **options
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


if __name__ == "__main__":
    main()
