"""The counts of `make house`, and that they may only fall."""

from __future__ import annotations

import pytest

from tools.house import code_tokens, compare, counts

MODULE = '''"""A docstring."""

from pathlib import (
    Path,
)


def size(path: Path) -> int:
    """Another one."""
    return 1  # a comment
'''

TESTS = """def test_is_refused():
    assert "No job has this id." in seen()

def test_a_job_is_refused():
    assert "no_such_job" == code()
    print("No job has this id.")
"""


def test_comments_docstrings_and_imports_are_no_code() -> None:
    assert code_tokens(MODULE) == 12  # def size ( path : Path ) -> int : return 1


def test_each_count_has_its_files() -> None:
    texts = {
        "app/jobs.py": "cloned_from = 1\n",
        "app/page.js": "row.cloned_from + row.is_urgent\n",
        "tools/x.py": "is_urgent = 2\n",
        "tests/test_x.py": TESTS,
        "app/api/openapi/examples/jobs.py": "a = 1\n",
    }
    assert list(counts(texts).values()) == [9, 2, 2, 3, 1, 6, 1, 1]


@pytest.mark.parametrize(("seen", "kept", "risen"), [(9, 9, 0), (10, 10, 0), (11, 10, 1)])
def test_a_count_may_only_fall(seen: int, kept: int, risen: int) -> None:
    allowed, problems = compare({"files": seen}, {"files": 10})
    assert (allowed, len(problems)) == ({"files": kept}, risen)
