"""docs/tenancy.md: the keys that it shows how to make can do what a fine-tuning script does first."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import openai
import pytest
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.db.access import keys
from app.db.engine import Sessions, transaction
from tests.factories import chat_lines, make_base_model
from tests.serving import LiveServer

PAGE = (Path(__file__).parents[1] / "docs" / "tenancy.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^tunery (keys create --project research --scope .*?)(?: +#.*)?$", re.M)
BODY = re.compile(r"--json '(\{.*\"scopes\".*\})'")


def from_the_command(database_url: str) -> str:
    (command,) = COMMAND.findall(PAGE)
    done = CliRunner().invoke(command_line, shlex.split(command), env={"DATABASE_URL": database_url})
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def from_the_request(database_url: str) -> str:
    (body,) = BODY.findall(PAGE)
    scopes = [word for scope in json.loads(body)["scopes"] for word in ("--scope", scope)]
    command = ["keys", "create", "--project", "research", *scopes]
    done = CliRunner().invoke(command_line, command, env={"DATABASE_URL": database_url})
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("source", ["the command", "the request"])
def test_a_key_as_shown_lists_models_uploads_and_creates_a_job(
    source: str, live_server: LiveServer, database_url: str, sessions: Sessions, tmp_path: Path
) -> None:
    with transaction(sessions) as session:
        keys.ensure_project(session, "research")
        make_base_model(session, tmp_path / "base", name="tiny")
    secret = from_the_command(database_url) if source == "the command" else from_the_request(database_url)
    with openai.OpenAI(base_url=live_server.url, api_key=secret) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        file = client.files.create(file=io.BytesIO(chat_lines()), purpose="fine-tune")
        assert client.fine_tuning.jobs.create(model="tiny", training_file=file.id).id.startswith("ftjob-")
