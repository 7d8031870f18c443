"""`make facts`: each change that a user can see is a difference, and nothing else is."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tools.checkout import ROOT, check_out, is_in_history
from tools.facts import documents
from tools.facts.__main__ import COLLECTOR, DIFF, collect, main

OPERATION = {"parameters": [{"name": "limit", "maximum": 100}], "description": "a", "operationId": "create_job"}
PROPERTIES = {"model": {"type": "string", "title": "Model", "example": "tiny"}}
DOCUMENT: dict[str, Any] = {
    "paths": {"/v1/jobs": {"post": OPERATION}},
    "schemas": {"CreateJob": {"required": ["model", "file"], "properties": PROPERTIES}},
}


def changed(value: dict[str, Any], path: Iterable[Any], new: Any) -> dict[str, Any]:
    value = copy.deepcopy(value)
    *parents, last = path
    inner: Any = value
    for key in parents:
        inner = inner[key]
    inner[last] = new
    return value


class TestDocument:
    def test_examples_titles_and_order_are_no_facts(self) -> None:
        after = changed(DOCUMENT, ("paths", "/v1/jobs", "post", "operationId"), "other")
        for name in ("example", "title"):
            after = changed(after, ("schemas", "CreateJob", "properties", "model", name), "other")
        after = changed(after, ("schemas", "CreateJob", "required"), ["file", "model"])
        assert sorted(documents.leaves(after)) == sorted(documents.leaves(DOCUMENT))


class TestComparison:
    def test_a_commit_that_is_not_here_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main("0123456") == 2
        assert "0123456" in capsys.readouterr().err

    @pytest.mark.slow  # makes the OpenAPI document twice: ten core seconds
    @pytest.mark.skipif(not is_in_history("HEAD"), reason="this is no clone")
    def test_each_tree_is_read_by_its_own_code(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        check_out("HEAD", source)
        shutil.copytree(ROOT / COLLECTOR, source / COLLECTOR, dirs_exist_ok=True)
        main_module = source / "app" / "cli" / "main.py"
        main_module.write_text(main_module.read_text().replace("port: Port = 8000", "port: Port = 8123"))
        for tree in (source, ROOT):
            collect(tree, tmp_path / f"facts-{tree.name}", "--quick")
        command = [*DIFF, f"facts-{ROOT.name}", "facts-source"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        found = [line.split()[1] for line in done.stdout.splitlines() if "8123" in line]
        assert found == ["up", "doctor"]
        facts = {path.stem: path.read_text().splitlines() for path in (tmp_path / "facts-source").iterdir()}
        assert any(line.startswith("MissingScope 403") for line in facts["errors"])
        assert any(line.startswith("| `invalid_job_state` |") for line in facts["errors"])
        assert any(line.startswith("| `tunery_http_requests_total` |") for line in facts["monitoring"])
        assert "      - alert: TuneryApiErrors" in facts["monitoring"]
        assert '.components.schemas.JobBody.properties.id.type "string"' in facts["openapi"]
