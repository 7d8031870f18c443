"""Commands of docs/guides/serving.md that no other test runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.storage import LocalStorage
from tests.engines.__main__ import NOT_INSTALLED
from tests.factories import make_succeeded_job
from tests.serving import LiveServer

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guides" / "serving.md"
SHELL = re.compile(r"```sh\n(.*?)```", re.S)


def test_the_command_that_shows_the_compatibility_prints_it(
    live_server: LiveServer, api_key: str, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
) -> None:
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
    (block,) = [block for block in SHELL.findall(PAGE.read_text(encoding="utf-8")) if '["compatibility"]' in block]
    environment = os.environ | {"TUNERY": live_server.root, "KEY": f"Authorization: Bearer {api_key}"}
    command = ["bash", "-euo", "pipefail", "-c", block.replace("ftjob-...", job.id)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["vllm"]["flags"][0] == "--enable-lora"


def test_an_environment_that_cannot_be_installed_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = os.environ | {"TUNERY_SERVING_HOME": str(tmp_path / "file" / "home")}
    command = [sys.executable, "-m", "tests.engines", "--install-only"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == NOT_INSTALLED == 3
    assert "cannot be installed here" in done.stderr
