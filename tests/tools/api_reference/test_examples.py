"""Every example of the reference, sent as it is shown: by curl and by the official client, over a socket."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import jsonschema_rs
import pytest
from cryptography.fernet import Fernet
from openai import HttpxBinaryResponseContent, OpenAI

from app.api.openapi import request_examples
from app.api.openapi.examples import deliveries, organization
from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.services.access import keys
from app.settings import Settings
from app.storage import LocalStorage
from tests.answering_engine import TO_ENGINES, AnsweringEngine, answering
from tests.receiver import Receiver
from tests.sending import TO_LOOPBACK, sending
from tests.serving import LiveServer
from tests.tools.api_reference.world import TRAINING_DATA, World, replaced
from tools.api_reference.__main__ import document

pytestmark = pytest.mark.extended("every example of the reference, sent by curl and by the official client")

STREAM_ENDED = 28  # curl's own word for its time limit: a stream goes on until then


@pytest.fixture
def settings(settings: Settings) -> Settings:
    targets = {
        "secret_keys": type(settings.secret_keys)(Fernet.generate_key().decode()),
        "delivery_directories": (deliveries.DESTINATION["shared_path"],),
        "base_model_directories": (str(Path(organization.REGISTER["directory"]).parent),),
    }
    return settings.model_copy(update=TO_LOOPBACK | TO_ENGINES | targets)


@pytest.fixture
def receiver(settings: Settings) -> Iterator[Receiver]:
    with sending(settings) as receiver:
        yield receiver


@pytest.fixture
def engine_server() -> Iterator[AnsweringEngine]:
    with answering() as server:
        yield server


@pytest.fixture
def admin_key(sessions: Sessions, project: Project) -> str:
    with transaction(sessions) as session:
        return keys.issue(session, project, "admin", keys.ADMIN_SCOPES).secret


@pytest.fixture
def http(live_server: LiveServer, admin_key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx2.Client]:
    monkeypatch.setenv("NO_PROXY", "*")
    with httpx2.Client(base_url=live_server.root, headers={"Authorization": f"Bearer {admin_key}"}) as client:
        yield client


@pytest.fixture
def world(
    sessions: Sessions, storage: LocalStorage, project: Project, base_model: str, http: httpx2.Client, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, engine_server: AnsweringEngine,
) -> World:  # fmt: skip
    here = tmp_path / "here"
    here.mkdir()
    (here / request_examples.FILE_NAME).write_bytes(TRAINING_DATA)
    monkeypatch.chdir(here)
    return World(sessions, storage, project, http, receiver.url, engine_server.url)


def check_body(name: str, status: int, media_type: str, body: bytes) -> None:
    """The answer is documented, and true to its schema."""
    responses = document()["paths"][name.split(" ", 1)[1]][name.split(" ", 1)[0].lower()]["responses"]
    assert str(status) in responses, f"{status} is not documented"
    content = responses[str(status)].get("content", {})
    if media_type == request_examples.JSON:  # files answer with the media type of their own bytes
        assert request_examples.JSON in content, f"{media_type} is not documented"
        schema = content[media_type]["schema"] | {"components": document()["components"]}
        jsonschema_rs.validator_for(schema).validate(json.loads(body))


def run_curl(snippet: str, root: str, key: str) -> tuple[int, str, bytes]:
    """(status, media type, body) of the snippet, run by a shell as a reader would; of a stream, its first seconds."""
    headers = Path("headers")
    seconds = 2 if "-N" in snippet else 60
    snippet = snippet.replace("curl -s", f"curl -s --max-time {seconds} --dump-header {headers}", 1)
    environment = os.environ | {"TUNERY": root, "KEY": f"Authorization: Bearer {key}", "NO_PROXY": "*"}
    done = subprocess.run(["bash", "-c", snippet], env=environment, capture_output=True, check=False)
    assert done.returncode in (0, STREAM_ENDED), done.stderr
    head = headers.read_text().split("\n\n")[0].splitlines()
    types = [line.split(":", 1)[1] for line in head if line.lower().startswith("content-type:")]
    return int(head[0].split()[1]), types[0].split(";")[0].strip() if types else "", done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_every_curl_example_gets_the_documented_answer(
    world: World, live_server: LiveServer, admin_key: str, subtests: pytest.Subtests
) -> None:
    for name in world.operations():
        with subtests.test(name):
            ids = world.ids(name)
            shown = request_examples.curl(world.request(name))
            status, media_type, body = run_curl(replaced(shown, ids), live_server.root, admin_key)
            assert 200 <= status < 300, body
            check_body(name, status, media_type, body)


def test_every_python_example_sends_the_request_it_stands_for(
    world: World, live_server: LiveServer, admin_key: str, subtests: pytest.Subtests
) -> None:
    answered: list[httpx2.Response] = []
    with httpx2.Client(event_hooks={"response": [answered.append]}) as recorded:
        client = OpenAI(
            base_url=live_server.url, api_key=admin_key, admin_api_key=admin_key, http_client=recorded, max_retries=0
        )
        for name in world.operations():
            request = world.request(name)
            snippet = request_examples.python(request)
            if snippet is None:
                continue
            with subtests.test(name), contextlib.redirect_stdout(io.StringIO()):
                ids = world.ids(name)
                answered.clear()
                exec(
                    replaced(snippet, ids),
                    {"client": client, "HttpxBinaryResponseContent": HttpxBinaryResponseContent, "Path": Path},
                )
                sent = answered[0].request
                assert (sent.method, sent.url.path) == (request.method, replaced(request.path, ids))
