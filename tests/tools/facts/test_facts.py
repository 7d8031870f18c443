"""`make facts`: each change that a user can see is a difference, and nothing else is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tools.checkout import ROOT, check_out, is_in_history
from tools.facts.__main__ import COLLECTOR, DIFF, collect


class TestComparison:
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
        assert "invalid_job_state" in facts["errors"]
        assert any(line.startswith("| `tunery_http_requests_total` |") for line in facts["monitoring"])
        assert "      - alert: TuneryApiErrors" in facts["monitoring"]
        assert '.components.schemas.JobBody.properties.id.type "string"' in facts["openapi"]
