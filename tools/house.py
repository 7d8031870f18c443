"""`make house`: the size and shape of the source tree, as numbers.

The counts of tools/house.json may not rise: exit code 1, as in .ci/run. A change that needs a higher one writes it into
that file and says why in its commit message. `TUNERY_WRITE_SNAPSHOTS=1 make house` writes the counts that have fallen.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import sys
import tokenize
from collections.abc import Mapping

from tools.checkout import ROOT, git

SERVICE = ("app/", "worker/")
OTHER_FOLDERS = ("tests/", "benchmarks/", "docs/", "examples/", "migrations/", ".ci/")  # their tokens are not counted
# Fields that are stored and shown: in how many files each is named is what another such field will cost.
FIELDS = (
    "cloned_from", "worker_labels", "deliver_to", "waiting_for", "max_new_tokens", "disabled_reason", "failing_since",
    "model_alias", "line_count", "is_urgent",
)  # fmt: skip
LAYOUT_TOKENS = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip
NO_SUBJECT = ("test_of_", "test_that_", "test_is_", "test_are_", "test_in_", "test_has_", "test_with_", "test_for_")
ALLOWED = ROOT / "tools" / "house.json"
WRITE_FALLEN = "TUNERY_WRITE_SNAPSHOTS"


def source_texts() -> dict[str, str]:
    """{path: text} of the sources that git has or would add."""
    names = git("ls-files", "--cached", "--others", "--exclude-standard").decode().splitlines()
    found = [name for name in names if name.endswith((".py", ".js", ".html")) and (ROOT / name).is_file()]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in found}


def counts(texts: Mapping[str, str]) -> dict[str, int]:
    """The numbers that may not rise."""
    python = {name: text for name, text in texts.items() if name.endswith(".py")}
    service = {name: text for name, text in texts.items() if name.startswith(SERVICE)}
    modules = python.keys() & service.keys()
    tests = {name: text for name, text in python.items() if name.startswith("tests/")}
    return {
        "code tokens": sum(code_tokens(text) for name, text in python.items() if not name.startswith(OTHER_FOLDERS)),
        "lines of app and worker": sum(texts[name].count("\n") for name in modules),
        "files of app and worker": len(modules),
        "places of ten fields": sum(
            re.search(rf"\b{field}\b", text) is not None for field in FIELDS for text in service.values()
        ),
        "lines of tests": sum(text.count("\n") for text in tests.values()),
        **_tests(tests),
    }


def code_tokens(source: str) -> int:
    """The tokens of a module without comments, docstrings and imports."""
    tree = ast.parse(source)
    nodes = [node for each in ast.walk(tree) if (node := _docstring(each))]
    nodes += [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    skipped = {line for node in nodes for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type not in LAYOUT_TOKENS and token.start[0] not in skipped for token in tokens)


def compare(seen: Mapping[str, int], allowed: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
    """The allowed counts with those that have fallen, and a line for each that has risen."""
    risen = [
        f"{name}: {count:,}, allowed are {allowed[name]:,}" for name, count in seen.items() if count > allowed[name]
    ]
    return {name: min(count, allowed[name]) for name, count in seen.items()}, risen


def main() -> int:
    seen, allowed = counts(source_texts()), json.loads(ALLOWED.read_text(encoding="utf-8"))
    for name, count in seen.items():
        print(f"{name:<34}{count:,}" + (f" ({count - allowed[name]:+,})" if count != allowed[name] else ""))
    fallen, risen = compare(seen, allowed)
    if os.environ.get(WRITE_FALLEN):
        ALLOWED.write_text(json.dumps(fallen, indent=2) + "\n", encoding="utf-8")
    for line in risen:
        print(f"{line}: remove something, or change {ALLOWED.name} and say why in the commit message", file=sys.stderr)
    return int(bool(risen))


def _tests(texts: Mapping[str, str]) -> dict[str, int]:
    """How many tests assert a sentence (it belongs to tests/sentences.json), and how many names need their class."""
    nodes = [node for tree in map(ast.parse, texts.values()) for node in ast.walk(tree)]
    tests = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {
        "tests that assert a sentence": sum(any(map(_asserts_sentence, ast.walk(test))) for test in tests),
        "names of tests without a subject": sum(test.name.startswith(NO_SUBJECT) for test in tests),
    }


def _asserts_sentence(node: ast.AST) -> bool:
    """Whether it is an `assert` or a `match=` with a text of at least four words."""
    if isinstance(node, ast.Assert):
        node = node.test
    elif not (isinstance(node, ast.keyword) and node.arg == "match"):
        return False
    texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return any(isinstance(text, str) and len(text.split()) >= 4 for text in texts)


def _docstring(node: ast.AST) -> ast.stmt | None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    return None if ast.get_docstring(node, clean=False) is None else node.body[0]


if __name__ == "__main__":
    raise SystemExit(main())
