"""`tunery webhooks`, against the real API."""

from __future__ import annotations

import json

from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.db.webhooks import endpoints
from tests.commands.conftest import Tunery

URL = "https://hooks.example.com/tunery"


def test_an_endpoint_from_its_creation_to_its_end(tunery: Tunery, sessions: Sessions, project: Project) -> None:
    made = tunery("webhooks", "create", URL, "--name", "pipeline", "--json").json
    assert made["signing_secret"].startswith("whsec_")
    listed = tunery("webhooks", "list").out
    assert "pipeline" in listed
    assert "succeeded, failed, cancelled" in listed
    with transaction(sessions) as session:
        endpoints.announce(session, project.id, "fine_tuning.job.failed", json.dumps({"id": "ftjob-1"}))
    (delivery,) = tunery("webhooks", "deliveries", made["id"], "--json").json
    assert delivery["data"] == {"id": "ftjob-1"}
    assert "pending" in tunery("webhooks", "deliveries", made["id"]).out
    assert tunery("webhooks", "redeliver", made["id"], delivery["id"]).out == f"{delivery['id']} pending\n"
    assert tunery("webhooks", "rotate", made["id"], "--keep-old").out.strip() != made["signing_secret"]
    assert "disabled: by request" in tunery("webhooks", "disable", made["id"]).out
    assert tunery("webhooks", "enable", made["id"]).out == f"{made['id']} enabled\n"
    assert tunery("webhooks", "delete", made["id"]).out == f"{made['id']} deleted\n"
    assert tunery("webhooks", "list", "--json").json == []


def test_the_secret_is_all_that_create_prints(tunery: Tunery) -> None:
    event = tunery("webhooks", "events").out.split()[0]
    made = tunery("webhooks", "create", URL, "--event", event)
    assert (made.exit_code, made.out[:6], len(made.out.splitlines())) == (0, "whsec_", 1)
