from __future__ import annotations

import sys
from pathlib import Path

import benchmarks


def test_no_module_has_the_name_of_one_of_pythons() -> None:
    """The peer's script runs by its path: the first place Python looks for `queue` is then this directory."""
    names = {path.stem for path in Path(benchmarks.__file__).parent.glob("*.py")}
    assert names & set(sys.stdlib_module_names) == set()
