"""Docs that cannot drift: what the code has, the docs name; what the docs show, runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from app.api.openapi.examples import all_operations
from app.cli.local_stack import base_model
from app.domain.jobs.auto_hyperparameters import REFERENCE_LENGTH
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
PYTHON = re.compile(r"```python\n(.*?)```", re.S)
SHELL = re.compile(r"```sh\n(.*?)```", re.S)
BUNDLED = re.compile(r"\bsmollm2-135m-instruct\b", re.I)
MAKE = re.compile(r"`make ([a-z-]+)")
SOURCE = re.compile(r"`((?:[a-z]\w*/)*\w+\.py)`")


def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def variable_of(name: str) -> str:
    return name.upper() if name in ("database_url", "redis_url") else f"TUNERY_{name.upper()}"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_documented_with_its_environment_variable(name: str) -> None:
    assert f"`{variable_of(name)}`" in read("settings.md")


def test_the_settings_page_names_no_variable_that_is_not_read() -> None:
    known = {variable_of(name) for name in Settings.model_fields} | {
        "TUNERY_BASE_URL",
        "TUNERY_API_KEY",
        "TUNERY_DEBUG",
        "TUNERY_UPLOAD_IDLE_SECONDS",  # an older name
    }
    assert set(re.findall(r"`(TUNERY_[A-Z_0-9]+)`", read("settings.md"))) <= known


def test_the_rule_for_the_learning_rate_is_the_one_in_force() -> None:
    assert f"the sixteenth root of {REFERENCE_LENGTH} / (steps x epochs);" in read("api.md")


def test_every_route_is_documented(tmp_path: Path) -> None:
    from app.main import create_app

    settings = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere", data_dir=tmp_path)
    paths = create_app(settings).openapi()["paths"]
    text = read("api.md")
    missing = [
        f"{method.upper()} {path}"
        for path, operations in paths.items()
        for method in operations
        if method != "head" and f"`{method.upper()} {path.replace(':path', '')}`" not in text
    ]
    assert missing == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    broken = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if not (path.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("path", [path for path in DOCS if path.name != "LOG.md"], ids=lambda path: path.name)
def test_every_source_file_that_a_page_names_with_its_directory_is_there(path: Path) -> None:
    named = [name for name in SOURCE.findall(path.read_text(encoding="utf-8")) if "/" in name]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_architecture_page_lists_every_package_with_the_first_sentence_of_its_docstring() -> None:
    packages = {
        f"{path.parent.relative_to(ROOT)}/": (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
        for root in ("app", "worker", "tools", "migrations")
        for path in (ROOT / root).rglob("__init__.py")
    }
    rows = re.findall(r"^\| `([a-z_/]+/)` \| (.+) \|$", read("architecture.md"), re.MULTILINE)
    assert dict(rows) == {name: text.partition("\n\n")[0].replace("\n", " ") for name, text in packages.items()}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_python_block_of_a_page_compiles(path: Path) -> None:
    for number, block in enumerate(PYTHON.findall(path.read_text(encoding="utf-8"))):
        compile(block, f"{path.name}, block {number}", "exec")


def test_the_bundled_model_has_one_name_everywhere() -> None:
    written = {name for path in DOCS if "reference" not in path.parts
               for name in BUNDLED.findall(path.read_text(encoding="utf-8"))}  # fmt: skip
    assert written == {base_model.NAME}
    assert all_operations.MODEL == base_model.NAME  # of which the reference is made


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_curl_takes_its_key_and_address_from_what_the_readme_sets(path: Path) -> None:
    shell = "".join(SHELL.findall(path.read_text(encoding="utf-8")))
    assert re.findall(r"Bearer \$\w+|\$URL\b", shell) == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {name for path in DOCS for name in MAKE.findall(path.read_text(encoding="utf-8"))}
    assert named <= targets


def test_the_architecture_page_names_only_rooms_that_exist() -> None:
    rooms = re.findall(r"`((?:app|worker)/[a-z_/]+\.py)`", read("architecture.md"))
    assert [room for room in rooms if not (ROOT / room).exists()] == []
