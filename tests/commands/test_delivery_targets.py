"""`tunery targets` and deliveries of jobs: the commands of docs/guides/serving.md, in their order, on the real API."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import update

from app.db.engine import Sessions, transaction
from app.db.tables import Delivery, Job
from app.domain.deliveries.served_check import unchecked
from app.settings import Settings
from tests.commands.conftest import Tunery

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "serving.md"
COMMAND = re.compile(r"^tunery (targets .*|jobs deliver.*)$", re.M)
CREDENTIALS = {"access_key_id": "id", "secret_access_key": "very-secret"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    changes = {
        "secret_keys": type(settings.secret_keys)(Fernet.generate_key().decode()),
        "delivery_directories": ("/srv/adapters",),
        "delivery_allow_http": True,
        "delivery_allowed_networks": "10.0.0.0/8",
    }
    return settings.model_copy(update=changes)


def test_the_commands_of_the_page_run_in_their_order(
    tunery: Tunery, trained_job: Job, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("credentials.json").write_text(json.dumps(CREDENTIALS))
    commands = COMMAND.findall(PAGE.read_text(encoding="utf-8"))
    assert len(commands) == 9
    for command in commands:
        done = tunery(*shlex.split(command.replace("JOB", trained_job.id)))
        assert done.exit_code == 0, (command, done.err)
        assert "very-secret" not in done.out + done.err
    listed = tunery("targets", "list").out
    assert "archive" in listed
    assert "bucket" not in listed
    assert json.loads(tunery("targets", "show", "production").out)["served_model"] == "support-bot"
    (delivery,) = tunery("jobs", "deliveries", trained_job.id, "--json").json
    assert (delivery["target"], delivery["status"]) == ("archive", "pending")
    with transaction(sessions) as session:
        check = unchecked("no record").model_dump(mode="json")
        session.execute(update(Delivery).values(served_check=check, state="delivered", next_attempt_at=None))
    assert "(no record)" in " ".join(tunery("jobs", "deliveries", trained_job.id).out.split())
    assert "is being withdrawn" in tunery("jobs", "withdraw", trained_job.id, delivery["id"]).out
