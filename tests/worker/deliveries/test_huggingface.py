"""Deliveries to a stand-in of the Hugging Face Hub, which answers as huggingface_hub 2.4.0 expects of the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.domain.access.outbound_networks import parse_networks
from app.domain.deliveries.targets import HuggingFaceDestination
from tests.loopback import Answer, Received, serving_loopback
from tests.sentences import Reviewed
from tests.worker.deliveries.conftest import DeliveryHarness, adapter, unsaved_delivery
from worker.deliveries.huggingface import MAX_RESPONSE_BYTES, HuggingFaceTarget
from worker.deliveries.outbound import guard_connections
from worker.deliveries.targets import DeliveryError

# huggingface_hub 2.4.0 passes raw bytes to httpx2 in the older way
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "me/adapters"
TOKEN = "hf_very-secret"


@dataclass
class Hub:
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    revisions: list[str] = field(default_factory=lambda: ["0" * 40])
    redirect_to: str | None = None

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path.startswith("/upload/"):
            self.large[hashlib.sha256(body).hexdigest()] = body
            return 200, {}
        match method, path.partition("?")[0]:
            case "POST", "/api/validate-yaml":  # of README.md
                return 200, {"errors": [], "warnings": []}
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
                lines = [json.loads(line) for line in body.splitlines()]
                if lines[0]["value"]["parentCommit"] != self.revisions[-1]:
                    return 412, {"error": "A commit has happened since. Please refresh and try again."}
                self._commit(lines)
                oid = hashlib.sha1(body).hexdigest()
                self.revisions.append(oid)
                return 200, {"commitUrl": f"{self.url}/{REPO}/commit/{oid}", "commitOid": oid, "success": True}
            case "GET", p if "/resolve/" in p:
                content = self.files.get(p.rpartition("/")[2])
                return (404, {"error": "Entry not found"}) if content is None else (200, json.loads(content))
            case "GET", _:
                siblings = [{"rfilename": name} for name in self.files]
                return 200, {"id": REPO, "sha": self.revisions[-1], "siblings": siblings}
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

    def respond(request: Received) -> Answer:
        if hub.redirect_to:
            return 307, {"Location": hub.redirect_to}, b""
        status, value = 401, {"error": "Invalid username or password."}
        is_upload = request.path.startswith("/upload/")  # its address is signed
        if is_upload or request.headers.get("authorization") == f"Bearer {TOKEN}":
            status, value = hub.respond(request.method, request.path, request.body)
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    with serving_loopback(respond) as port, guard_connections(parse_networks("127.0.0.0/8")):
        hub.url = f"http://127.0.0.1:{port}"
        yield hub


def target(hub: Hub, token: str = TOKEN) -> HuggingFaceTarget:
    destination = HuggingFaceDestination(kind="huggingface", repo_id=REPO, endpoint_url=hub.url)
    return HuggingFaceTarget(destination, token, 10.0)


def test_a_delivery_is_one_commit_whose_revision_is_recorded(hub: Hub, tmp_path: Path) -> None:
    delivered = target(hub).deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    assert delivered.location["revision"] == hub.revisions[-1]
    assert hub.files["adapter_model.safetensors"] == b"weights"
    assert json.loads(hub.files["adapter_config.json"]) == {"base_model_name_or_path": "tiny"}
    target(hub).withdraw(unsaved_delivery(**delivered.location))
    assert hub.files == {}


def test_an_adapter_that_took_its_place_is_not_withdrawn(hub: Hub, tmp_path: Path) -> None:
    first = target(hub).deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    target(hub).deliver(unsaved_delivery(model="ft:tiny:y"), adapter(tmp_path / "b"))
    before = dict(hub.files)
    target(hub).withdraw(unsaved_delivery(**first.location))
    assert hub.files == before


def test_a_later_commit_of_other_files_does_not_keep_it_there(hub: Hub, tmp_path: Path) -> None:
    first = target(hub).deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    hub.revisions.append("a" * 40)
    hub.files["NOTES.md"] = b"theirs"
    target(hub).withdraw(unsaved_delivery(**first.location))
    assert hub.files == {"NOTES.md": b"theirs"}


def test_a_repository_of_another_target_is_kept(hub: Hub, tmp_path: Path, reviewed: Reviewed) -> None:
    target(hub).deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    before = dict(hub.files)
    with pytest.raises(DeliveryError) as caught:
        target(hub).deliver(unsaved_delivery("target_2"), adapter(tmp_path / "b"))
    reviewed(str(caught.value))
    target(hub).withdraw(unsaved_delivery("target_2"))
    assert hub.files == before


def test_one_of_two_deliveries_at_the_same_time_is_refused(hub: Hub, tmp_path: Path) -> None:
    """The other one commits after this one has looked for the owner."""
    respond = hub.respond

    def commit_before(method: str, path: str, body: bytes) -> tuple[int, Any]:
        if "/commit/" in path:
            hub.revisions.append("a" * 40)
        return respond(method, path, body)

    hub.respond = commit_before  # type: ignore[method-assign]
    with pytest.raises(DeliveryError, match="412"):
        target(hub).deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    assert hub.files == {}


def test_a_repository_that_was_deleted_has_nothing_to_withdraw(hub: Hub) -> None:
    hub.respond = lambda *_: (404, {"error": "Repository not found"})  # type: ignore[method-assign]
    target(hub).withdraw(unsaved_delivery())


def test_the_next_adapter_ends_the_delivery_before(delivery: DeliveryHarness, hub: Hub) -> None:
    destination = {"kind": "huggingface", "repo_id": REPO, "endpoint_url": hub.url}
    first, second = delivery.deliver(destination, secrets={"token": TOKEN}), delivery.deliver_next()
    row = delivery.delivery(first)
    assert (row.state, row.error) == ("withdrawn", f"replaced by {second.fine_tuned_model}")
    assert delivery.delivery(second).state == "delivered"


def test_a_refused_token_is_named_and_not_shown(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="refuses the token") as refused:
        target(hub, "hf_wrong").deliver(unsaved_delivery(), adapter(tmp_path / "a"))
    assert "hf_wrong" not in str(refused.value)


def test_a_response_that_is_too_long_is_not_read_whole(hub: Hub, tmp_path: Path) -> None:
    hub.files["MANIFEST.json"] = json.dumps("x" * MAX_RESPONSE_BYTES).encode()
    with pytest.raises(DeliveryError, match=f"longer than {MAX_RESPONSE_BYTES:,} bytes"):
        target(hub).deliver(unsaved_delivery(), adapter(tmp_path / "a"))


def test_a_redirect_to_a_private_address_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.redirect_to = "http://169.254.169.254/latest/meta-data"
    with pytest.raises(DeliveryError, match=r"169\.254\.169\.254"):
        target(hub).deliver(unsaved_delivery(), adapter(tmp_path / "a"))


def test_a_hub_that_accepts_a_connection_and_is_silent_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, guard_connections(parse_networks("127.0.0.0/8")):
        url = "http://{}:{}".format(*silent.getsockname())
        destination = HuggingFaceDestination(kind="huggingface", repo_id=REPO, endpoint_url=url)
        with pytest.raises(DeliveryError, match="timed out"):
            HuggingFaceTarget(destination, TOKEN, 0.3).withdraw(unsaved_delivery())
