"""One command writes a version into every file that has one."""

from __future__ import annotations

import re
import shutil
from datetime import date
from pathlib import Path

import pytest

from tools import release

SECTION = "## [0.2.0] - 2026-11-27"
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [0.1.0] - 2026-01-01\n\n- The first.\n"


def test_the_unreleased_changes_become_the_section_of_the_version() -> None:
    text = release.release_section(CHANGELOG, "0.2.0", date(2026, 11, 27))
    assert text.replace(f"{SECTION}\n\n", "") == CHANGELOG != text


@pytest.mark.parametrize("version", ["0.2.0", "0.1.0"])
def test_without_changes_or_for_a_released_version_it_refuses(version: str) -> None:
    changelog = CHANGELOG if version == "0.1.0" else CHANGELOG.replace("### Added\n\n- A thing.\n\n", "")
    with pytest.raises(ValueError, match=r"CHANGELOG\.md has"):
        release.release_section(changelog, version, date(2026, 11, 27))


def test_the_version_is_written_into_every_file(tmp_path: Path) -> None:
    for name in ["CHANGELOG.md", *release.VERSIONED]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(release.ROOT / name, tmp_path / name)
    release.main(["9.8.7", "--no-build"], tmp_path)
    for name, pattern in release.VERSIONED.items():
        found = re.findall(pattern, (tmp_path / name).read_text(), re.MULTILINE)
        assert set(found) == {"9.8.7"}, name
    assert "## [9.8.7] - " in (tmp_path / "CHANGELOG.md").read_text()


def test_every_file_has_the_version_of_the_package() -> None:
    versions = {
        found
        for name, pattern in release.VERSIONED.items()
        for found in re.findall(pattern, (release.ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(versions) == 1, versions


def test_the_recipe_has_what_the_images_copy_and_compose_mounts() -> None:
    copies = re.findall(r"^COPY (.+) \S+$", (release.ROOT / "Dockerfile.gpu").read_text(), re.MULTILINE)
    mounts = re.findall(r'\["\./(\S+?):', (release.ROOT / "docker-compose.yml").read_text())
    needed = {*" ".join(copies).split(), *mounts}
    assert {"pyproject.toml", "migrations", "examples/tls-proxy/nginx.conf"} < needed
    assert not {path for path in needed if path.split("/")[0] not in release.IMAGES}


def test_the_bill_has_what_the_service_requires_and_neither_tools_nor_paths() -> None:
    names = release.shipped_packages()
    assert {"fastapi", "mako", "torch", "openai", "mcp"} < names  # mako: of alembic
    assert not names & {"pytest", "ruff", "mypy", "moto"}
    address = [{"url": "file:///home/somebody/tunery/packages/tunery-client"}]
    parts = [{"bom-ref": f"{name}==1", "name": name, "externalReferences": address} for name in ("FastAPI", "pytest")]
    edges = [{"ref": "root", "dependsOn": ["FastAPI==1", "pytest==1"]}, {"ref": "pytest==1"}, {"ref": "FastAPI==1"}]
    root = {"component": {"bom-ref": "root"}}
    bill = release.without_tools({"components": parts, "dependencies": edges, "metadata": root}, names)
    assert bill["components"] == [{"bom-ref": "FastAPI==1", "name": "FastAPI", "externalReferences": []}]
    assert bill["dependencies"] == [
        {"ref": "root", "dependsOn": ["FastAPI==1"]},
        {"ref": "FastAPI==1", "dependsOn": []},
    ]


def test_a_word_that_is_no_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        release.main(["next"], tmp_path)
    assert ended.value.code == 2
