"""`make house`: the size and shape of the source tree, as numbers. They are for information; no limit is enforced.

Prints, for app/ and worker/: files; lines of code, comments, docstrings and blank lines; the widest folder; one import
cycle between modules; functions, their median and 90th percentile length, and private functions called once.
"""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from collections import Counter
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("app", "worker")
LAYOUT_TOKENS = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


@dataclass
class Counts:
    files: int = 0
    code: int = 0
    comments: int = 0  # lines with nothing but a comment
    docstrings: int = 0
    blank: int = 0
    function_lines: list[int] = field(default_factory=list)
    called_once: int = 0  # functions named _x with one use in their module

    def add(self, source: str) -> None:
        tree = ast.parse(source)
        docstring_lines = {line for node in ast.walk(tree) if (span := _docstring(node)) for line in span}
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        code_lines = {
            line
            for token in tokens
            if token.type not in LAYOUT_TOKENS
            for line in range(token.start[0], token.end[0] + 1)
        } - docstring_lines
        comment_lines = {token.start[0] for token in tokens if token.type == tokenize.COMMENT} - code_lines
        self.files += 1
        self.code += len(code_lines)
        self.comments += len(comment_lines)
        self.docstrings += len(docstring_lines)
        self.blank += len(source.splitlines()) - len(code_lines | comment_lines | docstring_lines)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        self.function_lines += [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
        self.called_once += _called_once(tree, functions)


def _called_once(tree: ast.AST, functions: list[ast.FunctionDef | ast.AsyncFunctionDef]) -> int:
    uses = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    uses += Counter(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    private = [node.name for node in functions if node.name.startswith("_") and not node.name.startswith("__")]
    return sum(1 for name in private if uses[name] == 1)


def _docstring(node: ast.AST) -> range | None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    if ast.get_docstring(node, clean=False) is None:
        return None
    first = node.body[0]
    return range(first.lineno, (first.end_lineno or first.lineno) + 1)


def widest_folder() -> tuple[str, int]:
    """The folder with the most entries: modules and packages, without __init__.py."""
    folders = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_dir()]
    entries = {
        str(folder.relative_to(ROOT)): sum(
            1
            for entry in folder.iterdir()
            if entry.name != "__init__.py" and (entry.suffix == ".py" or _is_package(entry))
        )
        for folder in (*folders, *(ROOT / package for package in PACKAGES))
    }
    return max(entries.items(), key=lambda item: item[1])


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").exists()


def import_cycle() -> list[str]:
    """The modules of one import cycle, from a module to itself; none if there is no cycle."""
    graph = grimp.build_graph(*PACKAGES)
    try:
        TopologicalSorter({each: graph.find_modules_directly_imported_by(each) for each in graph.modules}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def main() -> None:
    total = Counts()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            total.add(path.read_text(encoding="utf-8"))
    folder, entries = widest_folder()
    lengths = sorted(total.function_lines)
    print(f"files                {total.files}")
    print(f"lines of code        {total.code}")
    print(f"lines of comments    {total.comments}")
    print(f"lines of docstrings  {total.docstrings}")
    print(f"blank lines          {total.blank}")
    print(f"widest folder        {folder}: {entries} entries")
    print(f"import cycle         {' -> '.join(import_cycle()) or 'none'}")
    print(f"functions            {len(lengths)}: median {statistics.median(lengths):.0f} lines,", end=" ")
    print(f"90th percentile {lengths[len(lengths) * 9 // 10]}")
    print(f"called once          {total.called_once} private functions")


if __name__ == "__main__":
    main()
