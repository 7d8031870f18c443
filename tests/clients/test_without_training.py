"""The newest official client in the scenarios that need no worker; `make test-sdk` runs them all, in three generations.

The client runs in this environment, whose constraints pin the newest generation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.services.access import keys
from tests.clients.environments import HERE, python_generations
from tests.factories import make_base_model, make_key
from tests.serving import LiveServer

SUBJECTS = ("01_connect", "03_files", "07_uploads", "08_create", "24_once", "27_query")
MODELS = {"model": "tiny", "slashed_model": "acme/tiny"}


@pytest.mark.timeout(240)
def test_the_newest_client_connects_uploads_creates_and_repeats(
    live_server: LiveServer, sessions: Sessions, project: Project, tmp_path: Path
) -> None:
    assert python_generations()[-1].version == openai.__version__
    with transaction(sessions) as session:
        for name in MODELS.values():
            make_base_model(session, tmp_path / name, name)
        secrets = {
            "key": make_key(session, project),
            "admin_key": keys.issue(session, project, "admin", ("all", "admin")).secret,
        }
    context = tmp_path / "context.json"
    context.write_text(json.dumps(MODELS | secrets | {"base_url": live_server.url, "shows": []}))
    scenarios = HERE / "scenarios"
    files = [str(scenarios / f"scenario_{subject}.py") for subject in SUBJECTS]
    options = [
        "-q",
        "-c",
        str(scenarios / "pytest.ini"),
        "-o",
        f"cache_dir={tmp_path / 'cache'}",
        "-p",
        "no:schemathesis",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=scenarios,
        env=os.environ | {"TUNERY_CONTEXT": str(context), "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout
