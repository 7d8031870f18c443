"""No text of a request becomes a pattern of Python's `re`, which can take exponential time; such patterns go to RE2."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CALLS = {"compile", "match", "fullmatch", "search", "split", "sub", "subn", "findall", "finditer"}
# Modules with patterns that are no literals, and the source of the pattern.
DYNAMIC_PATTERNS = {
    "app/api/middleware/request_log.py": "the prefix of our own keys",
    "app/services/access/idempotency.py": "the prefix of our own keys",
    "app/cli/job_file.py": "the scalars of YAML 1.2, each a literal, without a repetition in a repetition",
    "app/domain/answers/engine_answers.py": "the escaped name of a served model",
    "app/domain/datasets/render.py": "escaped tokens of the base model",
    "worker/trainer/model/checkpoint_tensors.py": "patterns of the model class in transformers",
}


def dynamic_pattern_lines(path: Path) -> list[int]:
    """Line numbers of calls of `re` whose pattern is not a literal."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.func.attr in CALLS
        and not (node.args and isinstance(node.args[0], ast.Constant))
    ]


def sources() -> dict[str, Path]:
    return {str(path.relative_to(ROOT)): path for folder in ("app", "worker") for path in (ROOT / folder).rglob("*.py")}


def test_only_the_listed_modules_pass_re_a_pattern_that_is_not_a_literal() -> None:
    assert {name for name, path in sources().items() if dynamic_pattern_lines(path)} == DYNAMIC_PATTERNS.keys()


def test_re_is_only_imported_as_a_module_under_its_own_name() -> None:
    for name, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("re", "fnmatch"), name
            elif isinstance(node, ast.Import):
                assert not any(alias.name == "fnmatch" or (alias.name == "re" and alias.asname) for alias in node.names)
