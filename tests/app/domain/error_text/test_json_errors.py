from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from app.domain.error_text.json_text import syntax_error_text


def problem_of(text: str) -> str | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return syntax_error_text(error)
    return None


class TestSyntaxProblem:
    @given(st.integers(1, 0x1F).map(chr))
    def test_names_the_escape_that_stands_for_a_control_character(self, character: str) -> None:
        problem = problem_of(f'"{character}"')
        assert problem is not None
        assert f"U+{ord(character):04X}" in problem
        escape = problem.rpartition("write it as ")[2]
        assert json.loads(f'"{escape}"') == character

    @given(st.text(alphabet="{}[]\",:\\u0019atrue'\t\n\x00 -.e", max_size=30))
    def test_is_printable_and_says_nothing_twice(self, text: str) -> None:
        problem = problem_of(text)
        assert problem is None or (problem.isprintable() and "at at" not in problem)
