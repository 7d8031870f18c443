from __future__ import annotations

import json
import re
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.evaluations.templates import MissingField, TextRefused, compared_text, parts_of, paths_of, render
from benchmarks.linear import cpu_seconds
from tests.sentences import Reviewed

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def test_values_of_the_row_and_the_answer_take_the_place_of_placeholders(reviewed: Reviewed) -> None:
    item = {"answer": "Lima", "nested": {"list": [{"x": 1.5}]}}
    text = "{{ item.answer }}={{sample.output_text}}, {{ item.nested.list[0].x }}, {{ item.nested.list }}"
    reviewed(render(text, item, "Cusco"))


def test_output_json_is_the_answer_as_json(reviewed: Reviewed) -> None:
    assert render("{{ sample.output_json.city }}", {}, '{"city": "Lima"}') == "Lima"
    with pytest.raises(MissingField) as caught:
        render("{{ sample.output_json.city }}", {}, "no JSON")
    reviewed(str(caught.value))


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


def test_a_missing_field_is_named_with_those_that_exist(reviewed: Reviewed) -> None:
    with pytest.raises(MissingField) as missing:
        render("{{ item.nested.y }}", {"nested": {"x": 1, "z": 2}}, "")
    reviewed(str(missing.value))


@settings(max_examples=50)
@given(JSON, TEXT)
def test_a_value_is_printed_as_it_is_or_as_json(value: Any, output: str) -> None:
    rendered = render("{{ item.value }}", {"value": value}, output)
    assert rendered == value if isinstance(value, str) else json.loads(rendered) == value
    assert render("{{ sample.output_text }}", {}, output) == output  # also if the answer has a placeholder in it


class TestLimits:
    def test_a_rendered_template_is_at_most_a_megabyte_and_no_larger_text_is_built(self) -> None:
        assert len(render("{{ item.a }}" * 10, {"a": "x" * 100_000}, "")) == 1_000_000
        tracemalloc.start()
        with pytest.raises(TextRefused, match="1,000,000 bytes"):
            render("{{ item.a }}" * 1600, {"a": "x" * 100_001}, "")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # 160 MB without the limit
        tracemalloc.stop()

    def test_the_bytes_of_a_text_count(self) -> None:
        with pytest.raises(TextRefused):
            render("{{ item.a }}", {"a": "字" * 400_000}, "")

    def test_a_compared_text_is_at_most_100_000_characters(self, reviewed: Reviewed) -> None:
        assert len(compared_text("{{ item.a }}", {"a": "字" * 100_000})) == 100_000
        with pytest.raises(TextRefused) as caught:
            compared_text("{{ item.a }}x", {"a": "a" * 100_000})
        reviewed(str(caught.value))

    def test_a_value_of_the_answer_that_is_nested_too_deeply_is_refused(self) -> None:
        value: list[Any] = []
        for _ in range(100_000):
            value = [value]
        with pytest.raises(TextRefused, match="nested"):
            render("{{ item.a }}", {"a": value}, "")

    def test_the_message_of_a_missing_field_is_short(self) -> None:
        row = {f"{number}" * 1000: 0 for number in range(1000)}
        with pytest.raises(MissingField) as missing:
            render("{{ item" + ".a" * 5000 + " }}", row, "")
        assert len(str(missing.value)) < 3000

    def test_no_client_fills_the_memory_with_templates(self) -> None:
        for number in range(200):
            paths_of(f"{{{{ item.a{number} }}}}")
        assert parts_of.cache_info().currsize <= 64

    @pytest.mark.parametrize("text", ["{{", "{", "}}", "{{ item.a }", "{{ item.a }}"])
    def test_parsing_takes_linear_time(self, text: str) -> None:
        template = text * (1_000_000 // len(text))  # 50 times as long as one template may be
        assert cpu_seconds(lambda: suppressed(template), 1) < 10  # hours if each `{{` were searched to the end


def suppressed(template: str) -> None:
    with suppress(ValueError):
        parts_of.__wrapped__(template)
