"""The table of planted faults fits the tree: a refactoring that moves the code of a fault moves its search text too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.table import FAULTS, Fault, read_table

TEST_FILES = {
    "test_some.py": "@pytest.mark.slow\ndef test_a(): ...\nclass TestB:\n    def test_c(self): ...\n",
    "test_none.py": "pytestmark = [pytest.mark.timeout(9), pytest.mark.extended('long')]\ndef test_a(): ...\n",
    "test_marked.py": "@pytest.mark.extended('long')\nclass TestA:\n    def test_b(self): ...\n",
}


def test_every_fault_can_be_planted_and_has_tests_in_make_test() -> None:
    table = read_table()
    assert {fault.name: problems for fault in table if (problems := fault.problems())} == {}
    assert len({fault.name for fault in table}) == len(table) == FAULTS


@pytest.fixture
def fault(tmp_path: Path) -> Fault:
    (tmp_path / "code.py").write_text("a\nb\nb\n", encoding="utf-8")
    for name, content in TEST_FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    return Fault("a becomes c", "code.py", "a", "c", ["test_some.py"])


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"search": "b"}, "2 times"),
        ({"search": "d"}, "0 times"),
        ({"file": "gone.py"}, "0 times"),
        ({"replace": "a"}, "changes"),
        ({"tests": []}, "at least one"),
        ({"tests": ["test_gone.py"]}, "does not exist"),
        ({"tests": ["test_none.py"]}, "make test"),
        ({"tests": ["test_marked.py"]}, "make test"),
    ],
)
def test_an_entry_that_is_not_well_formed_is_refused(
    fault: Fault, tmp_path: Path, changed: dict[str, object], word: str
) -> None:
    assert fault.problems(tmp_path) == []
    assert word in " ".join(replace(fault, **changed).problems(tmp_path))
