from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.evaluations.templates import MissingField, paths_of, render

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def test_values_of_the_row_and_the_answer_take_the_place_of_placeholders() -> None:
    item = {"answer": "Lima", "nested": {"list": [{"x": 1.5}]}}
    text = "{{ item.answer }}={{sample.output_text}}, {{ item.nested.list[0].x }}, {{ item.nested.list }}"
    assert render(text, item, "Cusco") == 'Lima=Cusco, 1.5, [{"x": 1.5}]'


def test_output_json_is_the_answer_as_json() -> None:
    assert render("{{ sample.output_json.city }}", {}, '{"city": "Lima"}') == "Lima"
    with pytest.raises(MissingField, match=re.escape("there is no {{ sample.output_json.city }}")):
        render("{{ sample.output_json.city }}", {}, "no JSON")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ row.answer }}", "row is not known; allowed are item and sample"),
        ("{{ item }}", "is no path such as {{ item.answer }}"),
        ("{{ item.a b }}", "is no path"),
        ("{{ sample.output_tools }}", "is not offered here; allowed are sample.output_text and sample.output_json"),
    ],
)
def test_other_placeholders_are_refused(template: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        paths_of(template)


def test_a_missing_field_is_named_with_those_that_exist() -> None:
    with pytest.raises(MissingField) as missing:
        render("{{ item.nested.y }}", {"nested": {"x": 1, "z": 2}}, "")
    assert str(missing.value) == "there is no {{ item.nested.y }}; item.nested has: x, z"


@settings(max_examples=50)
@given(JSON, TEXT)
def test_a_value_is_printed_as_it_is_or_as_json(value: Any, output: str) -> None:
    rendered = render("{{ item.value }}", {"value": value}, output)
    assert rendered == value if isinstance(value, str) else json.loads(rendered) == value
    assert render("{{ sample.output_text }}", {}, output) == output  # also if the answer has a placeholder in it
