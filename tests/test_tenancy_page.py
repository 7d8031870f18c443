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
from app.services.access import keys, projects
from tests.factories import chat_lines, make_base_model
from tests.serving import LiveServer

PAGE = (Path(__file__).parents[1] / "docs" / "tenancy.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^tunery (keys create --project research --scope .*?)(?: +#.*)?$", re.M)
BODY = re.compile(r"--json '(\{.*\"scopes\".*\})'")


def key_from_command(command: list[str], server: LiveServer, admin_key: str) -> str:
    environment = {"TUNERY_BASE_URL": server.root, "TUNERY_API_KEY": admin_key}
    result = CliRunner().invoke(command_line, command, env=environment)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("source", ["the command", "the request"])
def test_a_key_of_the_page_lists_models_uploads_a_file_and_creates_a_job(
    source: str, live_server: LiveServer, sessions: Sessions, tmp_path: Path
) -> None:
    with transaction(sessions) as session:
        admin_key = keys.issue(session, projects.ensure(session, "research"), "admin", keys.ADMIN_SCOPES).secret or ""
        make_base_model(session, tmp_path / "base", name="tiny")
    (command,), (body,) = COMMAND.findall(PAGE), BODY.findall(PAGE)
    scopes = [argument for scope in json.loads(body)["scopes"] for argument in ("--scope", scope)]
    words = shlex.split(command) if source == "the command" else ["keys", "create", "--project", "research", *scopes]
    secret = key_from_command(words, live_server, admin_key)
    with openai.OpenAI(base_url=live_server.url, api_key=secret) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        file = client.files.create(file=io.BytesIO(chat_lines()), purpose="fine-tune")
        assert client.fine_tuning.jobs.create(model="tiny", training_file=file.id).id.startswith("ftjob-")
