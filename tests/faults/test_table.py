"""The table of planted faults fits the tree: a refactoring that moves the code of a fault moves its search text too."""

from __future__ import annotations

from tests.faults.table import FAULTS, read_table


def test_every_fault_can_be_planted_and_has_tests_in_make_test() -> None:
    table = read_table()
    assert {fault.name: problems for fault in table if (problems := fault.problems())} == {}
    assert len({fault.name for fault in table}) == len(table) == FAULTS
