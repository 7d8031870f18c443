from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.error_text.json_text import as_json, plain_number, syntax_error_text, unquoted

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class TestShown:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (True, "true"),
            (None, "null"),
            ("7", '"7"'),
            (7, "7"),
            (1e308, "1e+308"),
            (["x"], '["x"]'),
            ({"x": None}, '{"x": null}'),
            (("a", 1), '["a", 1]'),
            ("größe", '"größe"'),
            ('"', '"\\""'),
            ("x" * 60, '"' + "x" * 60 + '"'),
            ("x" * 65, '"' + "x" * 60 + '…" (65 characters)'),
            ([0] * 40, "an array with 40 items"),
            (["x" * 70], "an array with 1 item"),
            ({f"k{at}": 0 for at in range(17)}, "an object with 17 keys"),
            (10**70, "1" + "0" * 59 + "… (71 digits)"),
            ("a\nb\x7f\u202e\u2028\ud800\U000e0001", '"a\\nb\\u007f\\u202e\\u2028\\ud800\\udb40\\udc01"'),
        ],
    )
    def test_a_value_in_a_message_is_json_and_short(self, value: Any, text: str) -> None:
        assert as_json(value) == text

    @given(JSON)
    def test_a_value_in_a_message_is_printable_and_the_same_value_if_whole(self, value: Any) -> None:
        text = as_json(value)
        assert text.isprintable()
        assert len(text) < 500
        if not any(mark in text for mark in ("…", "an array with", "an object with")):
            assert json.loads(text) == value


def test_a_name_is_as_it_came_but_printable_and_short() -> None:
    assert unquoted("n_epochs") == "n_epochs"
    assert unquoted("a\nb") == "a\\nb"
    assert unquoted("x" * 100) == "x" * 60 + "…"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-12, "1e-12"), (1e-6, "0.000001"), (0.99, "0.99"), (10, "10"), (100_000.0, "100000"), (1e12, "1e+12")],
)
def test_a_bound_is_written_without_an_exponent_where_that_reads_better(value: float, text: str) -> None:
    assert plain_number(value) == text


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
    def test_a_problem_is_printable_and_says_nothing_twice(self, text: str) -> None:
        problem = problem_of(text)
        assert problem is None or (problem.isprintable() and "at at" not in problem)
