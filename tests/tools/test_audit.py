"""The audit of dependencies: advisories from a file, and registries that have no data."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tools import audit


def advisory(name: str, *events: dict[str, str], versions: tuple[str, ...] = (), **record: Any) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}] if events else []
    package = {"ecosystem": "PyPI", "name": name}
    affected = {"package": package, "ranges": ranges, "versions": list(versions)}
    return {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "affected": [affected]} | record


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    path = tmp_path / "constraints.txt"
    path.write_text("# a comment\nJinja2==3.1.4\nfastapi==0.165.0  # why\ntorch>=2.10\nuvicorn[standard]==0.40.0\n")
    return path


def run(pins: Path, *arguments: str, pip_audit: tuple[str, ...] = audit.PIP_AUDIT) -> int:
    return audit.main(["--requirement", str(pins), *arguments], pip_audit)


def write(path: Path, *records: Any) -> str:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number, record in enumerate(records):
                archive.writestr(f"PYSEC-{number}.json", json.dumps(record))
    else:
        path.write_text(json.dumps(records[0] if len(records) == 1 else list(records)))
    return str(path)


@pytest.mark.parametrize("name", ["all.zip", "all.json"])
def test_a_file_of_advisories_is_enough(
    pins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    other = advisory("django", {"introduced": "0"})
    mine = advisory("jinja2", {"introduced": "0"}, {"fixed": "3.1.6"})
    assert run(pins, "--advisories", write(tmp_path / name, other, mine)) == 1
    out = capsys.readouterr().out
    assert out.startswith("jinja2 3.1.4: PYSEC-2026-1")
    assert "3.1.6\n3 packages" in out
    assert run(pins, "--advisories", write(tmp_path / name, other)) == 0


@pytest.mark.parametrize(
    ("record", "is_found"),
    [
        (advisory("jinja2", {"introduced": "3.1.0"}, {"last_affected": "3.1.4"}), True),
        (advisory("jinja2", {"introduced": "3.1.0"}, {"last_affected": "3.1.3"}), False),
        (advisory("jinja2", {"fixed": "3.2"}, {"introduced": "3.1.4"}), True),  # events in any order
        (advisory("jinja2", {"introduced": "0"}, {"fixed": "2.0"}, {"introduced": "3.0"}, {"fixed": "3.1.5"}), True),
        (advisory("jinja2", {"introduced": "0"}, {"fixed": "3.1.4"}), False),
        (advisory("jinja2", {"introduced": "3.1.5"}), False),
        (advisory("Jinja2", versions=("3.1.4",)), True),
        (advisory("jinja2", versions=("3.1.3", "nonsense")), False),
        (advisory("jinja2", {"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z"), False),
        (advisory("torch", {"introduced": "0"}), False),  # not pinned
    ],
)
def test_ranges_and_versions_are_read_as_osv_defines_them(
    pins: Path, tmp_path: Path, record: dict[str, Any], is_found: bool
) -> None:
    assert run(pins, "--advisories", write(tmp_path / "one.json", record)) == int(is_found)


@pytest.mark.parametrize("content", ["", "[]", "{}", "<html>", '["text"]'])
def test_a_file_without_advisories_is_no_data(pins: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "all.json"
    path.write_text(content)
    assert run(pins, "--advisories", str(path)) == audit.NO_DATA


def registry(tmp_path: Path, program: str) -> tuple[str, ...]:
    """A command that answers as pip-audit does; `path` is the file of requirements."""
    path = tmp_path / "pip_audit.py"
    path.write_text(f"import json, sys\npath = sys.argv[-1]\ntext = open(path).read()\n{program}\n")
    return sys.executable, str(path)


KNOWS_CANARY = """
vulns = [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"], "aliases": []}] if "jinja2==2.10" in text else []
print(json.dumps({"dependencies": [{"name": "jinja2", "version": "2.10", "vulns": vulns}]}))
"""


@pytest.mark.parametrize(
    ("program", "exit_code", "reason"),
    [
        (KNOWS_CANARY, 0, ""),
        (KNOWS_CANARY.replace(' if "jinja2==2.10" in text else []', ""), 1, ""),
        (
            KNOWS_CANARY.replace('"jinja2==2.10" in text', "False"),
            audit.NO_DATA,
            "no vulnerability",
        ),
        ("sys.exit('ServiceError: 403 Forbidden')", audit.NO_DATA, "ServiceError: 403 Forbidden"),
        (
            "print(json.dumps({'dependencies': [{'name': 'fastapi', 'skip_reason': 'not found'}]}))",
            audit.NO_DATA,
            "fastapi was skipped",
        ),
    ],
)
def test_a_registry_without_data_has_an_exit_code_of_its_own(
    pins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, exit_code: int, reason: str
) -> None:
    assert run(pins, pip_audit=registry(tmp_path, program)) == exit_code
    assert reason in capsys.readouterr().err
