"""Downloads from a stand-in of the Hugging Face Hub, which answers as huggingface_hub 2.4.0 expects of the real one."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session

from app import model_hub
from app.domain.base_models.catalog import RefusedModel
from app.errors import Unavailable
from app.system.model_files import read_catalog_entry
from tests.tiny import make_tiny_base

SOURCE, COMMIT = "org/tiny", "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model.safetensors"
UNWANTED = ("pytorch_model.bin", "modeling_x.py", "onnx/model.json", "consolidated.safetensors")
REVISIONS = ("main", "v1", COMMIT)


@dataclass
class Hub:
    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    token: str = ""  # that is required, if any
    is_gated: bool = False
    breaks_after_bytes: int = 0  # the first connection for the weights ends after so many bytes
    is_weightless: bool = False  # requests for the weights are answered with 503
    on_weights: Callable[[], None] | None = None  # called before the weights are sent
    requests: list[tuple[str, str]] = field(default_factory=list)  # for files: name and range


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    base = make_tiny_base(tmp_path / "published")
    hub = Hub({path.name: path.read_bytes() for path in base.iterdir()})
    hub.files |= dict.fromkeys(UNWANTED, b"x")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
    # worker.trainer, which other tests import in this process, sets HF_HUB_OFFLINE
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def _handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            if hub.token and self.headers.get("authorization") != f"Bearer {hub.token}":
                self._send(401, b"", {"x-error-code": "GatedRepo" if hub.is_gated else "RepoNotFound"})
            elif not re.match(f"/(api/models/)?{SOURCE}(/|$)", path):
                self._send(404, b"", {"x-error-code": "RepoNotFound"})
            elif match := re.fullmatch(f"/api/models/{SOURCE}(/revision/(.+))?", path):
                if match[2] not in (None, *REVISIONS):
                    self._send(404, b"", {"x-error-code": "RevisionNotFound"})
                else:
                    self._send(200, json.dumps({"id": SOURCE, "sha": COMMIT, "siblings": []}).encode())
            elif path == f"/api/models/{SOURCE}/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in hub.files.items()
                ]
                self._send(200, json.dumps(tree).encode())
            else:
                self._send_file(path.removeprefix(f"/{SOURCE}/resolve/{COMMIT}/"))

        def _send_file(self, name: str) -> None:
            content = hub.files[name]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            start = int((re.match(r"bytes=(\d+)-", self.headers.get("range", "")) or [0, 0])[1])
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if self.command == "GET":
                hub.requests.append((name, self.headers.get("range", "")))
            if self.command == "GET" and name == WEIGHTS and hub.on_weights:
                hub.on_weights()
            if self.command == "GET" and name == WEIGHTS and hub.is_weightless:
                self._send(503, b"")
                return
            self._send(206 if start else 200, content[start:], headers)

        def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.breaks_after_bytes and self.path.endswith(WEIGHTS):
                content = content[: hub.breaks_after_bytes]
                hub.breaks_after_bytes, self.close_connection = 0, True
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def pull(parent: Path, revision: str | None = None, source: str = SOURCE) -> model_hub.PulledModel:
    return model_hub.pull(source, revision, parent, lambda _: None)


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_revision_has_a_directory_of_its_own_with_the_files_of_a_base_model(
    hub: Hub, tmp_path: Path, revision: str | None
) -> None:
    pulled = pull(tmp_path / "models", revision)
    assert pulled == model_hub.PulledModel(SOURCE, COMMIT, tmp_path / "models" / "tiny-0123456789ab")
    names = {path.name for path in pulled.directory.iterdir() if path.is_file()}
    assert names == hub.files.keys() - set(UNWANTED)
    assert all((pulled.directory / name).read_bytes() == hub.files[name] for name in names)
    assert read_catalog_entry(pulled.directory).architecture == "LlamaForCausalLM"


def test_a_broken_connection_is_resumed_where_it_ended(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.breaks_after_bytes = 50_000
    pulled = pull(tmp_path / "models")
    assert (pulled.directory / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert [each for each in hub.requests if each[0] == WEIGHTS] == [(WEIGHTS, ""), (WEIGHTS, "bytes=50000-")]


def test_after_an_interruption_only_what_is_missing_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.is_weightless = True
    with pytest.raises(Unavailable, match="answered 503"):
        pull(tmp_path / "models")
    hub.is_weightless = False
    before = {name for name, _ in hub.requests} - {WEIGHTS}
    hub.requests.clear()
    for _ in range(2):  # the second finds everything there
        pulled = pull(tmp_path / "models")
        assert (pulled.directory / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert before.isdisjoint(name for name, _ in hub.requests)
    assert hub.requests.count((WEIGHTS, "")) == 1


def test_a_disk_that_is_too_small_is_refused_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=model_hub.RESERVE_BYTES))
    with pytest.raises(RefusedModel, match=r"needs 0\.27 GB"):
        pull(tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("changes", "source", "revision", "remedy"),
    [
        ({}, SOURCE, "v9", "no revision v9"),
        ({}, "org/other", None, "no model org/other"),
        ({"token": "secret"}, SOURCE, None, "set HF_TOKEN"),
        (
            {"token": "secret", "is_gated": True},
            SOURCE,
            None,
            "is gated: .*/org/tiny",
        ),
    ],
)
def test_what_the_hub_does_not_give_is_refused_with_what_to_do(
    hub: Hub, tmp_path: Path, changes: dict[str, object], source: str, revision: str | None, remedy: str
) -> None:
    vars(hub).update(changes)
    with pytest.raises(RefusedModel, match=remedy):
        pull(tmp_path / "models", revision, source)


def test_the_token_of_the_environment_is_sent(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert pull(tmp_path / "models").commit == COMMIT


def test_a_hub_that_accepts_a_connection_and_is_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_hub, "SILENCE_SECONDS", 0.2)
    close_session()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", "http://{}:{}".format(*silent.getsockname()))
        with pytest.raises(Unavailable, match="cannot be reached"):
            pull(tmp_path)
    close_session()


def test_without_a_network_the_message_names_models_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"--source org/tiny"):
        pull(tmp_path / "models")
