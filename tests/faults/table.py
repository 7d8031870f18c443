"""The table of planted faults, tests/faults.toml, and what is wrong with one of its entries."""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests" / "faults.toml"
FAULTS = 40
LEFT_OUT = ("extended", "slow", "browser")  # marks of tests that are not in `make test`


@dataclass(frozen=True)
class Fault:
    """A fault that each file of `tests` must see: `replace` in the place of `search`, which is in `file` once."""

    name: str
    file: str
    search: str
    replace: str
    tests: list[str]

    def problems(self) -> list[str]:
        """What makes this entry unusable with this tree."""
        path = ROOT / self.file
        number = path.read_text(encoding="utf-8").count(self.search) if path.is_file() else 0
        found = [] if number == 1 else [f"the search text is {number} times in {self.file}, not once"]
        if self.search == self.replace or not self.tests:
            found.append("a fault changes its search text and names at least one file of tests")
        for name in self.tests:
            if not (ROOT / name).is_file():
                found.append(f"{name} does not exist")
            elif not _is_in_make_test(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                found.append(f"{name} has no test that `make test` runs")
        return found


def read_table() -> list[Fault]:
    return [Fault(**entry) for entry in tomllib.loads(TABLE.read_text(encoding="utf-8"))["fault"]]


def _is_in_make_test(tree: ast.Module | ast.ClassDef) -> bool:
    """Whether a module or class has a test without a mark that leaves it out."""
    marks = [node.value for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.dump(node)]
    if any(map(_leaves_out, marks)):
        return False
    return any(
        not any(map(_leaves_out, node.decorator_list))
        and (_is_in_make_test(node) if isinstance(node, ast.ClassDef) else node.name.startswith("test_"))
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )


def _leaves_out(marks: ast.expr) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in LEFT_OUT for node in ast.walk(marks))
