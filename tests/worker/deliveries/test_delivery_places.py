"""The migration that refuses deliveries at another place than their target's, which earlier releases have made."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import update

from app.db import migrate
from app.db.deliveries import deliveries
from app.db.engine import Sessions, transaction
from app.db.jobs import checkpoints
from app.db.tables import Delivery, Project
from app.storage import LocalStorage
from tests.factories import make_succeeded_job, make_target

MIGRATION = migrate.MIGRATIONS / "versions" / "20261130_delivery_places.py"
DIRECTORY = {"kind": "directory", "path": "/srv/adapters"}
SHARED = {"kind": "vllm", "urls": ["http://x"], "shared_path": "/srv/adapters", "engine_path": None}
BUCKET = {"kind": "s3", "bucket": "adapters", "prefix": "lora", "endpoint_url": None}
HUB = {"kind": "huggingface", "repo_id": "me/adapters"}
IN_BUCKET = {"bucket": "adapters", "endpoint_url": None, "prefix": "lora/tiny/bot", "keys": []}


@pytest.mark.parametrize(
    ("destination", "location", "is_refused"),
    [
        (DIRECTORY, None, False),
        (DIRECTORY, {"path": "/srv/adapters/bot", "served_model": "bot"}, False),
        (DIRECTORY, {"path": "/srv/adapters/bot", "served_model": "before"}, True),
        (DIRECTORY, {"path": "/srv/adapters/bot", "earlier": [{"path": "/srv/others/bot"}]}, True),
        (DIRECTORY, {"path": "/srv/others/bot"}, True),
        (SHARED, {"path": "/srv/adapters/.tunery/bot/1", "root": "/srv/adapters"}, False),
        (SHARED, {"path": "/srv/others/.tunery/bot/1"}, True),
        (SHARED | {"shared_path": None}, {"paths": {"http://x": "/cache/adapters/1"}}, False),
        (BUCKET, IN_BUCKET, False),
        (BUCKET, IN_BUCKET | {"bucket": "another"}, True),
        (BUCKET, IN_BUCKET | {"prefix": "loras/tiny/bot"}, True),
        (HUB, {"repo_id": "me/adapters", "revision": "1"}, False),
        (HUB, {"repo_id": "me/others"}, True),
    ],
    ids=str,
)
def test_an_adapter_elsewhere_is_refused_until_it_is_withdrawn(
    sessions: Sessions,
    storage: LocalStorage,
    project: Project,
    base_model: str,
    destination: dict[str, Any],
    location: dict[str, Any] | None,
    is_refused: bool,
) -> None:
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
        target = make_target(session, project.id, "production", destination, served_model="bot")
        row = deliveries.create(session, job, checkpoints.kept(session, job.id)[-1], target)
        row.location = location
        session.flush()
        check = runpy.run_path(str(MIGRATION))["upgrade"]
        with Operations.context(MigrationContext.configure(session.connection())):
            if is_refused:
                with pytest.raises(CommandError, match=row.id):
                    check()
                session.execute(update(Delivery).values(state="withdrawn", next_attempt_at=None))
            check()
