from __future__ import annotations

import json

import pytest
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
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "expected a value, found the end of the text at column 1"),
            ('{"a": tru}', 'expected a value, found "t" at column 7'),
            ('{"a" 1}', 'expected a colon, found "1" at column 6'),
            ('{"a": 1 "b": 2}', 'expected a comma or a closing bracket, found "\\"" at column 9'),
            ("{'a': 1}", 'expected a key in double quotes, found "\'" at column 2'),
            ("{}{}", 'expected the end of the text, found "{" at column 3'),
            ("\x00", 'expected a value, found "\\u0000" at column 1'),
            ('{"a":\n "x', "the string that begins at line 2, column 2 has no closing quote"),
            ('"\\u12"', "\\u without four hexadecimal digits at column 3"),
            (
                '"\\x"',
                'a backslash at column 2; only " \\ / b f n r t and u may follow one, and \\\\ is the backslash itself',
            ),
            ('"a\tb"', "the control character U+0009 (tab) inside a string at column 3; write it as \\t"),
            ('"a\x0bb"', "the control character U+000B inside a string at column 3; write it as \\u000b"),
            ('"a\x00b"', "the control character U+0000 (NUL) inside a string at column 3; remove it"),
        ],
    )
    def test_says_what_was_seen_and_what_is_allowed(self, text: str, problem: str) -> None:
        assert problem_of(text) == problem

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
