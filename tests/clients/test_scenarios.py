"""What must be true of the scenarios themselves; they run in environments of their own, by `make test-sdk`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.clients.environments import python_generations

SCENARIOS = Path(__file__).with_name("scenarios")
FILES = sorted(SCENARIOS.glob("*.py"))
OURS = ("app", "worker", "tests", "migrations")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_of_ours_is_imported(path: Path) -> None:
    """A scenario that could look inside would not be a client."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [alias.name for node in found if isinstance(node, ast.Import) for alias in node.names]
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names += [node.module or "" for node in found if isinstance(node, ast.ImportFrom)]
    assert [name for name in names if name.split(".")[0] in OURS] == []


def test_there_is_one_client_of_each_generation() -> None:
    majors = [generation.version.split(".")[0] for generation in python_generations()]
    assert len(majors) == len(set(majors)) == 3
    assert all(generation.version.count(".") == 2 for generation in python_generations()), "a pin is a whole version"
