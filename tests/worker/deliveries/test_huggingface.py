"""Deliveries to a stand-in of the Hugging Face Hub, which answers as huggingface_hub 2.4.0 expects of the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.domain.access.outbound_networks import parse_networks
from app.domain.deliveries.targets import HuggingFaceDestination
from app.system.artifact_directory import write_manifest
from worker.deliveries.destination import DeliveryError, Parcel
from worker.deliveries.huggingface import HuggingFaceTarget
from worker.deliveries.outbound import guard_connections

# huggingface_hub 2.4.0 passes raw bytes to httpx2 in the older way
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "me/adapters"
TOKEN = "hf_very-secret"


@dataclass
class Hub:
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    revisions: list[str] = field(default_factory=list)
    redirect_to: str | None = None

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path.startswith("/upload/"):
            self.large[hashlib.sha256(body).hexdigest()] = body
            return 200, {}
        match method, path.partition("?")[0]:
            case "POST", "/api/repos/create":
                return 200, {"url": f"{self.url}/{REPO}", "name": REPO}
            case "POST", p if "/preupload/" in p:
                asked = json.loads(body)["files"]
                modes = [
                    {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                    for each in asked
                ]
                return 200, {"files": [mode | {"shouldIgnore": False, "oid": None} for mode in modes]}
            case "POST", p if p.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                upload = [
                    each | {"actions": {"upload": {"href": f"{self.url}/upload/{each['oid']}"}}} for each in objects
                ]
                return 200, {"transfer": "basic", "objects": upload}
            case "POST", p if "/commit/" in p:
                self._commit([json.loads(line) for line in body.splitlines()])
                oid = hashlib.sha1(body).hexdigest()
                self.revisions.append(oid)
                return 200, {"commitUrl": f"{self.url}/{REPO}/commit/{oid}", "commitOid": oid, "success": True}
            case "GET", _:
                return 200, {"id": REPO, "sha": self.revisions[-1], "siblings": []}
        return 404, {"error": "not here"}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self._chunks() if "chunked" in self.headers.get("transfer-encoding", "") else self._body()
            is_upload = self.path.startswith("/upload/")  # its address is signed
            status, value = 401, {"error": "Invalid username or password."}
            if is_upload or self.headers.get("authorization") == f"Bearer {TOKEN}":
                status, value = hub.respond(self.command, self.path, body)
            content = json.dumps(value).encode()
            self.send_response(307 if hub.redirect_to else status)
            if hub.redirect_to:
                self.send_header("Location", hub.redirect_to)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("content-length") or 0))

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with guard_connections(parse_networks("127.0.0.0/8")):
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def target(hub: Hub, token: str = TOKEN) -> HuggingFaceTarget:
    destination = HuggingFaceDestination(kind="huggingface", repo_id=REPO, endpoint_url=hub.url)
    return HuggingFaceTarget(destination, token, 10.0)


def parcel(**location: object) -> Parcel:
    return Parcel("target_1", "hub", "ft:tiny:x", True, "ft:tiny:x", "tiny", {}, location, None)


def adapter(directory: Path) -> Path:
    directory.mkdir()
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "other"}')
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    write_manifest(directory, {"step": 1})
    return directory


def test_it_is_one_commit_whose_revision_is_recorded_and_it_is_withdrawn(hub: Hub, tmp_path: Path) -> None:
    delivered = target(hub).deliver(parcel(), adapter(tmp_path / "a"))
    assert delivered.location["revision"] == hub.revisions[-1]
    assert hub.files["adapter_model.safetensors"] == b"weights"
    assert json.loads(hub.files["adapter_config.json"]) == {"base_model_name_or_path": "tiny"}
    target(hub).withdraw(parcel(**delivered.location))
    assert hub.files == {}


def test_a_later_commit_is_not_touched_by_a_withdrawal(hub: Hub, tmp_path: Path) -> None:
    first = target(hub).deliver(parcel(), adapter(tmp_path / "a"))
    hub.revisions.append("later")
    target(hub).withdraw(parcel(**first.location))
    assert hub.files != {}


def test_a_refused_token_is_named_and_not_shown(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="refuses the token") as refused:
        target(hub, "hf_wrong").deliver(parcel(), adapter(tmp_path / "a"))
    assert "hf_wrong" not in str(refused.value)


def test_a_redirect_to_a_private_address_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.redirect_to = "http://169.254.169.254/latest/meta-data"
    with pytest.raises(DeliveryError, match=r"169\.254\.169\.254"):
        target(hub).deliver(parcel(), adapter(tmp_path / "a"))
