"""docs/tenancy.md: the keys of its examples have the scopes that a fine-tuning script needs."""

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
from app.db.engine import Sessions, transaction
from app.services.access import projects
from tests.factories import chat_lines, make_base_model
from tests.serving import LiveServer

PAGE = (Path(__file__).parents[1] / "docs" / "tenancy.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^tunery (keys create --project research --scope .*?)(?: +#.*)?$", re.M)
BODY = re.compile(r"--json '(\{.*\"scopes\".*\})'")


def key_from_command(database_url: str) -> str:
    (command,) = COMMAND.findall(PAGE)
    result = CliRunner().invoke(command_line, shlex.split(command), env={"DATABASE_URL": database_url})
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


def key_from_request(database_url: str) -> str:
    (body,) = BODY.findall(PAGE)
    scopes = [argument for scope in json.loads(body)["scopes"] for argument in ("--scope", scope)]
    command = ["keys", "create", "--project", "research", *scopes]
    result = CliRunner().invoke(command_line, command, env={"DATABASE_URL": database_url})
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("source", ["the command", "the request"])
def test_a_key_of_the_page_lists_models_uploads_a_file_and_creates_a_job(
    source: str, live_server: LiveServer, database_url: str, sessions: Sessions, tmp_path: Path
) -> None:
    with transaction(sessions) as session:
        projects.ensure(session, "research")
        make_base_model(session, tmp_path / "base", name="tiny")
    secret = key_from_command(database_url) if source == "the command" else key_from_request(database_url)
    with openai.OpenAI(base_url=live_server.url, api_key=secret) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        file = client.files.create(file=io.BytesIO(chat_lines()), purpose="fine-tune")
        assert client.fine_tuning.jobs.create(model="tiny", training_file=file.id).id.startswith("ftjob-")
