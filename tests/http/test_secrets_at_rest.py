"""A secret that was given or shown is in no table, no file of PostgreSQL (its write-ahead log included) and no log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import Engine, text
from starlette.testclient import TestClient

from app.db.tables import Base, Project
from app.settings import Settings
from tests.sending import TO_LOOPBACK, sending

MADE = {"api_key": "made-engine-key-0123456789", "token": "made-hub-token-0123456789", "access_key_id": "MADEACCESSKEY"}
MADE |= {"secret_access_key": "made-secret-access-key-0123456789", "changed": "made-other-engine-key-0123456789"}
MADE |= {"hub": "made-token-of-the-model-hub", "storage": "made-storage-secret", "judge": "made-judge-key-0123456789"}
TARGETS = [
    ({"kind": "vllm", "urls": ["https://vllm.example.com"]}, ("api_key",)),
    ({"kind": "s3", "bucket": "adapters"}, ("access_key_id", "secret_access_key")),
    ({"kind": "huggingface", "repo_id": "team/adapter"}, ("token",)),
]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    secrets = {"secret_keys": SecretStr(Fernet.generate_key().decode()), "hub_token": SecretStr(MADE["hub"])}
    secrets |= {"storage_access_key_id": "id", "storage_secret_access_key": SecretStr(MADE["storage"])}
    endpoints = {"judge": {"base_url": "http://127.0.0.1:1/v1", "api_key": MADE["judge"]}}
    allowed = {"base_model_pull_directory": "/models", **TO_LOOPBACK}
    return Settings.model_validate(settings.model_dump() | secrets | {"endpoints": endpoints} | allowed)


def post(client: TestClient, path: str, body: Any, times: int = 1) -> Any:
    """The first of `times` answers to the same request with an idempotency key."""
    headers = {"Idempotency-Key": f"{path} {body.get('name')}"}
    answers = [client.post(path, json=body, headers=headers) for _ in range(times)]
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    assert all("idempotency-replayed" in answer.headers for answer in answers[1:])
    return answers[0].json()


def story(admin: TestClient, project_id: str, webhook_url: str) -> Iterator[str]:
    """Give and receive every kind of secret, twice; yields those that were received."""
    types = ["fine_tuning.job.succeeded"]
    endpoint = post(admin, "/v1/webhook_endpoints", {"name": "e", "url": webhook_url, "event_types": types}, times=2)
    yield endpoint["signing_secret"]
    path = f"/v1/webhook_endpoints/{endpoint['id']}"
    post(admin, f"{path}/test", {"event_type": types[0]})
    yield post(admin, f"{path}/rotate_secret", {"keep_old_secret_active_for_24_hours": True}, 2)["signing_secret"]
    keys = f"/v1/organization/projects/{project_id}/api_keys"
    key = post(admin, keys, {"name": "nightly", "scopes": ["all"]}, times=2)
    yield key["value"]
    rotated = post(admin, f"{keys}/{key['id']}/rotate", {"overlap_seconds": 60}, times=2)["value"]
    yield rotated
    assert admin.get("/v1/project", headers={"Authorization": f"Bearer {rotated}"}).status_code == 200
    assert admin.get(f"/v1/files?api_key={rotated}").status_code == 400
    for destination, names in TARGETS:
        credentials = {name: MADE[name] for name in names}
        body = {"name": destination["kind"], "destination": destination, "credentials": credentials}
        post(admin, "/v1/delivery_targets", body, times=2)
        assert admin.post("/v1/delivery_targets", json=body).status_code == 400  # its name is used
        assert admin.post("/v1/delivery_targets", json=body | {"more": credentials}).status_code == 400
    post(admin, "/v1/delivery_targets/vllm", {"credentials": {"api_key": MADE["changed"]}}, times=2)
    post(
        admin, "/v1/organization/base_model_registrations", {"name": "tiny", "source": "team/tiny", "revision": "main"}
    )


def places(engine: Engine, began_at: float) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each table as text, and of each file of PostgreSQL's that was written since `began_at`."""
    with engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            rows = connection.scalars(text(f"SELECT row::text FROM {table.name} AS row")).all()
            yield table.name, "\n".join(rows).encode()
        connection.execute(text("CHECKPOINT"))
        directory = Path(connection.scalar(text("SHOW data_directory")) or "")
    for path in directory.parent.rglob("*"):
        if path.is_file() and path.stat().st_mtime >= began_at:
            yield str(path.relative_to(directory.parent)), path.read_bytes()


def test_every_secret_of_a_story_is_only_with_its_client(
    admin: TestClient, settings: Settings, engine: Engine, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    began_at = time.time() - 1
    with sending(settings) as receiver:
        received = list(story(admin, project.id, receiver.url))
    assert len(set(received)) == 4
    found = dict(places(engine, began_at)) | {"log": "".join(capfd.readouterr()).encode()}
    for name, content in [("idempotency_keys", "signing_secret"), ("audit_log", "rotate"), ("log", "rotate_secret")]:
        assert content.encode() in found[name]  # the search finds what is there
    written = {name.split("/")[1] for name in found if "/" in name and b"rotate_secret" in found[name]}
    assert written >= {"base", "pg_wal"}
    secrets = [secret.encode() for secret in (*received, *MADE.values())]
    assert [(name, secret) for name in found for secret in secrets if secret in found[name]] == []
