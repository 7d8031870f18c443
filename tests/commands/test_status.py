"""`tunery status`: one screen for operators, and an exit code for scripts."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import update

from app.db.engine import Sessions, transaction
from app.db.operations import status
from app.db.scheduling import workers
from app.db.tables import Delivery, Project
from app.db.webhooks import endpoints
from app.errors import Unavailable
from app.services.access import keys
from app.services.operations import health
from app.services.operations import status as status_service
from app.storage import LocalStorage
from tests.commands.conftest import Tunery
from tests.factories import make_delivery, make_failed_job, make_succeeded_job, make_webhook_endpoint
from tests.sentences import Reviewed


@pytest.fixture(autouse=True)
def admin_key(tunery: Tunery, sessions: Sessions, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with transaction(sessions) as session:
        secret = keys.issue(session, project, "admin", key_scopes=["all", "admin"]).secret
    monkeypatch.setenv("TUNERY_API_KEY", secret)


def test_a_healthy_service_exits_with_0(
    tunery: Tunery, base_model: str, sessions: Sessions, reviewed: Reviewed
) -> None:
    with transaction(sessions) as session:
        status.report(session, "reconciler")
        workers.heartbeat(session, "gpu0@host#1", "gpu", "host", 1, {})
    shown = tunery("status")
    assert shown.exit_code == 0, shown.err
    assert "advice   no_backup" in shown.out
    assert "gpu0@host#1" in shown.out
    reviewed(re.sub(r"  \d.*free", "  0 GB of 1 GB are free", shown.out))


def test_without_postgresql_it_names_what_fails_with_a_remedy(
    tunery: Tunery, base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("PostgreSQL does not answer; try again in a few seconds.")

    away = health.ProbeResult("database", False, True, "PostgreSQL does not answer")
    monkeypatch.setattr(status_service, "view", fail)
    monkeypatch.setattr(health, "_database", lambda _: [away])
    shown = tunery("status")
    assert (shown.exit_code, shown.out) == (1, "")
    assert shown.err.startswith("problem  database")
    assert "-> Start PostgreSQL" in shown.err


def test_failed_jobs_deliveries_and_endpoints_are_shown_with_reason_and_remedy(
    tunery: Tunery, base_model: str, sessions: Sessions, project: Project, storage: LocalStorage
) -> None:
    with transaction(sessions) as session:
        job = make_failed_job(session, storage, project)
        delivered = make_succeeded_job(session, storage, project)
        make_delivery(session, delivered)
        session.execute(update(Delivery).values(error="the bucket is full", tries=1, attempt=1))
        endpoint = make_webhook_endpoint(session, project.id)
        endpoints.disable(session, endpoint.id, "410 Gone")
    shown = tunery("status")
    assert shown.exit_code == 1
    assert "problem  no_reconciler" in shown.out
    assert f"{job.id}  default  " in shown.out
    assert "Line 3: message" in shown.out
    assert "-> Correct the" in shown.out
    assert "1 x invalid_training_file" in shown.out
    assert f"{delivered.id}  default  production" in shown.out
    assert "is full\n    -> " in shown.out
    assert f"  {endpoint.id}  default  ci  disabled: " in shown.out
