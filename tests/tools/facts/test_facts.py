"""`make facts`: each change that a user can see is a difference, and nothing else is."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import typer
from openai.types.fine_tuning import FineTuningJobEvent

import app.cli.main
import app.settings
from tools.checkout import ROOT, check_out, is_in_history
from tools.facts import documents, story
from tools.facts.__main__ import COLLECTOR, DIFF, collect, main

OPERATION = {"parameters": [{"name": "limit", "maximum": 100}], "description": "a", "operationId": "create_job"}
PROPERTIES = {"model": {"type": "string", "title": "Model", "example": "tiny"}}
DOCUMENT: dict[str, Any] = {
    "paths": {"/v1/jobs": {"post": OPERATION}},
    "schemas": {"CreateJob": {"required": ["model", "file"], "properties": PROPERTIES}},
}
SCHEMA = (ROOT / "tests" / "upgrade" / "942affe" / "schema.sql").read_text()
STEP: dict[str, Any] = {
    "message": "Step 1/3: training loss=4.66 after 1.5 s, ftjob-0123456789abcdef",
    "data": {"train_loss": 4.66, "eta_seconds": 6.1, "mode": {"peak_bytes": 1, "row_tokens": 1024}},
}


def changed(value: dict[str, Any], path: Iterable[Any], new: Any) -> dict[str, Any]:
    value = copy.deepcopy(value)
    *parents, last = path
    inner: Any = value
    for key in parents:
        inner = inner[key]
    inner[last] = new
    return value


def new_lines(before: Iterable[str], after: Iterable[str]) -> set[str]:
    return set(after) - set(before)


class TestDocument:
    @pytest.mark.parametrize(
        ("path", "new", "line"),
        [
            (("paths", "/v1/jobs", "post", "description"), "b", '.paths./v1/jobs.post.description "b"'),
            (
                ("paths", "/v1/jobs", "post", "parameters", 0, "maximum"),
                99,
                ".paths./v1/jobs.post.parameters.limit.maximum 99",
            ),
            (
                ("schemas", "CreateJob", "properties", "model", "type"),
                "number",
                '.schemas.CreateJob.properties.model.type "number"',
            ),
            (
                ("schemas", "CreateJob", "properties", "example"),
                {"type": "string"},
                '.schemas.CreateJob.properties.example.type "string"',
            ),
        ],
    )
    def test_a_change_is_one_new_line(self, path: tuple[Any, ...], new: Any, line: str) -> None:
        after = documents.leaves(changed(DOCUMENT, path, new))
        assert new_lines(documents.leaves(DOCUMENT), after) == {line}

    def test_examples_titles_and_order_are_no_facts(self) -> None:
        after = changed(DOCUMENT, ("paths", "/v1/jobs", "post", "operationId"), "other")
        for name in ("example", "title"):
            after = changed(after, ("schemas", "CreateJob", "properties", "model", name), "other")
        after = changed(after, ("schemas", "CreateJob", "required"), ["file", "model"])
        assert sorted(documents.leaves(after)) == sorted(documents.leaves(DOCUMENT))


class TestDefaults:
    def test_a_default_of_an_option_is_seen(self) -> None:
        def lines_with(default: int) -> list[str]:
            commands = typer.Typer()

            @commands.command()
            def up(port: int = default) -> None: ...

            return list(documents.command_lines(typer.main.get_command(commands), "tunery"))

        (found,) = new_lines(lines_with(8000), lines_with(8001))
        assert found.startswith("tunery --port <int>")
        assert "8001" in found

    def test_every_name_of_a_variable_is_a_fact(self) -> None:
        (line,) = (each for each in documents.setting_lines(app.settings.Settings) if each.startswith("body_idle_"))
        assert "TUNERY_UPLOAD_IDLE_SECONDS" in line


class TestSchema:
    def test_columns_and_indexes_have_the_name_of_their_object(self) -> None:
        lines = set(story.schema_lines(SCHEMA))
        assert "jobs lease_owner text" in lines
        assert any(line.startswith("ix_exports_claim CREATE INDEX") for line in lines)

    def test_what_pg_dump_says_of_itself_is_no_fact(self) -> None:
        other = SCHEMA.replace("-- Dumped by pg_dump version", "\\restrict abc\n-- Dumped by another version")
        assert other != SCHEMA
        assert list(story.schema_lines(other)) == list(story.schema_lines(SCHEMA))


class TestEvent:
    def lines(self, event: dict[str, Any]) -> list[str]:
        return story.event_lines(FineTuningJobEvent.model_construct(type="metrics", level="info", **event))

    def test_ids_times_and_sizes_are_no_facts(self) -> None:
        other = changed(STEP, ["message"], "Step 1/3: training loss=4.66 after 2 min, ftjob-abcdef0123456789")
        other = changed(changed(other, ["data", "eta_seconds"], 9.0), ["data", "mode", "peak_bytes"], 2)
        assert self.lines(other) == self.lines(STEP)

    @pytest.mark.parametrize(("path", "new"), [(["data", "train_loss"], 4.67), (["data", "mode", "row_tokens"], 1)])
    def test_numbers_that_repeat_are_facts(self, path: list[str], new: float) -> None:
        assert len(new_lines(self.lines(STEP), self.lines(changed(STEP, path, new)))) == 1


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
