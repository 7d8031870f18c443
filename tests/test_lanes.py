from __future__ import annotations

from tests.lanes import deal


def test_each_process_begins_with_long_files_and_gets_as_many_tests() -> None:
    files = [(9.0, ["a1", "a2"]), (8.0, ["b1"]), (3.0, ["c1", "c2", "c3"]), (0.5, ["d1", "d2"])]
    assert deal(files, 2) == ["a1", "a2", "d1", "d2", "b1", "c1", "c2", "c3"]


def test_a_file_that_does_not_fit_is_dealt_to_several_processes() -> None:
    assert sorted(deal([(9.0, list("abcde")), (1.0, ["f"])], 3)) == list("abcdef")
