"""The generated types of packages/tunery-client, and its name beside the server's."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from typing import Any

from tools.client_types import PACKAGE, files
from tools.docs.reference import document

ROOT = PACKAGE.parents[1]


def test_the_types_are_those_of_the_api() -> None:
    for name, text in files(document()).items():
        assert (PACKAGE / name).read_text(encoding="utf-8") == text, "make openapi writes them again"


def test_the_module_has_at_most_300_written_lines() -> None:
    assert len((PACKAGE / "tunery" / "__init__.py").read_text(encoding="utf-8").splitlines()) <= 300


def test_both_distributions_fit_into_one_environment() -> None:
    server, client = (_project(ROOT / "pyproject.toml"), _project(PACKAGE / "pyproject.toml"))
    assert server["project"]["name"] != client["project"]["name"]
    assert client["tool"]["setuptools"]["packages"]["find"]["include"] == ["tunery"]
    assert not any(fnmatch("tunery", each) for each in server["tool"]["setuptools"]["packages"]["find"]["include"])
    assert "scripts" not in client["project"]  # the command `tunery` is the server's
    assert [each.partition(">")[0] for each in client["project"]["dependencies"]] == ["openai"]


def _project(path: Any) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))
