"""What tests of the API say in one word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from httpx2 import Client, Response
from sqlalchemy import update
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, Job, Project
from app.services.access import keys
from app.storage import LocalStorage
from tests.factories import (
    chat_lines,
    make_key,
    make_project,
    make_succeeded_job,
)

Upload = Callable[..., Response]


def begin_upload(client: Client, size_bytes: int, purpose: str = "user_data") -> str:
    """The path of a new upload by parts."""
    body = {"filename": "a.jsonl", "purpose": purpose, "mime_type": "text/plain", "bytes": size_bytes}
    answer = client.post("/v1/uploads", json=body)
    assert answer.status_code == 200, answer.text
    return f"/v1/uploads/{answer.json()['id']}"


@pytest.fixture
def upload(client: TestClient) -> Upload:
    """`upload(content, purpose=..., filename=..., **fields)` -> the response of POST /v1/files."""

    def send(
        content: bytes | None = None, purpose: str = "fine-tune", filename: str = "train.jsonl", **fields: Any
    ) -> Response:
        content = chat_lines() if content is None else content
        return client.post("/v1/files", data={"purpose": purpose, **fields}, files={"file": (filename, content)})

    return send


@pytest.fixture
def training_file(upload: Upload) -> str:
    """The id of an uploaded dataset of twelve examples."""
    return str(upload().json()["id"])


@pytest.fixture
def foreign_headers(sessions: Sessions) -> dict[str, str]:
    """Headers with a good key of another project."""
    with transaction(sessions) as session:
        secret = make_key(session, make_project(session, "other"))
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def admin(client: TestClient, sessions: Sessions) -> TestClient:
    """The client of the project `default`, whose key has every scope."""
    with transaction(sessions) as session:
        session.execute(update(ApiKey).values(scopes=list(keys.ADMIN_SCOPES)))
    return client


@pytest.fixture
def admin_headers(sessions: Sessions) -> dict[str, str]:
    """Headers with the key of an admin, of another project."""
    with transaction(sessions) as session:
        issued = keys.issue(session, make_project(session, "operators"), "admin", keys.ADMIN_SCOPES)
    return {"Authorization": f"Bearer {issued.secret}"}


@pytest.fixture
def succeeded(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Job:
    """A job that succeeded, with all its files."""
    with transaction(sessions) as session:
        return make_succeeded_job(session, storage, project)
