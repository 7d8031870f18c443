from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rouge_score.rouge_scorer import RougeScorer

from app.domain.evaluations.graders import METRICS, Grader
from app.domain.evaluations.rows import EvaluationRow
from app.domain.evaluations.spec import Scored
from benchmarks.linear import cpu_seconds
from worker.evaluations.scoring import score, similarity

GRADER: TypeAdapter[Grader] = TypeAdapter(Grader)
TEMPLATES = {"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}


def scored(kind: str, answer: str, output: str, **options: Any) -> Scored:
    templates = {} if kind == "json_valid" else TEMPLATES
    grader = GRADER.validate_python({"type": kind, "name": "g", **templates, **options})
    return score(grader, EvaluationRow(1, {"answer": answer}, prompt="?"), output)


@pytest.mark.parametrize(
    ("operation", "output", "value"),
    [
        ("eq", "Lima", 1),
        ("eq", "lima", 0),
        ("eq", "Lima.", 0),
        ("ne", "Lima", 0),
        ("ne", "lima", 1),
        ("like", "It is Lima.", 1),
        ("like", "It is lima.", 0),
        ("ilike", "It is LIMA.", 1),
        ("ilike", "Li", 0),
    ],
)
def test_string_checks_are_as_openai_defines_them(operation: str, output: str, value: float) -> None:
    assert scored("string_check", "Lima", output, operation=operation).value == value


@pytest.mark.parametrize("metric", METRICS)
def test_similarities_are_1_for_equal_texts_and_0_for_texts_without_anything_in_common(metric: str) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    assert similarity(metric, text, text) == pytest.approx(1.0)
    assert similarity(metric, "zzz", "xxxx") == pytest.approx(0.0, abs=0.05)
    assert similarity(metric, "", text) == pytest.approx(0.0)


def test_similarities_are_those_of_the_libraries() -> None:
    text, reference = "the cat sat on a mat today", "the cat sat on the mat"
    assert similarity("fuzzy_match", "abcd", "abxx") == pytest.approx(0.5)
    assert similarity("rouge_1", text, reference) == pytest.approx(2 * 5 / (7 + 6))
    assert similarity("rouge_l", text, reference) == pytest.approx(2 * 5 / (7 + 6))
    assert similarity("bleu", text, reference) == pytest.approx((5 / 7 * 3 / 6 * 2 / 5 * 1 / 4) ** 0.25)


@settings(max_examples=50, deadline=None)
@given(st.text("ab cd.", max_size=40), st.text("ab cd.", max_size=40))
def test_rouge_l_is_that_of_rouge_score(text: str, reference: str) -> None:
    expected = RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure
    assert similarity("rouge_l", text, reference) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["fuzzy_match", "rouge_l"])
def test_the_longest_texts_are_compared_in_seconds_and_little_memory(metric: str) -> None:
    tracemalloc.start()
    seconds = cpu_seconds(lambda: similarity(metric, "a b " * 25_000, "b a " * 25_000), 1)
    assert tracemalloc.get_traced_memory()[1] < 256 << 20  # a table of the words of both takes 20 GB
    tracemalloc.stop()
    assert seconds < 20


@pytest.mark.parametrize("template", ["{{ sample.output_text }}", "{{ sample.output_text }}{{ item.answer }}"])
def test_a_text_that_is_too_long_has_no_score_and_says_why(template: str) -> None:
    long = scored("string_check", "yes", "x" * 100_001, operation="eq", input=template)
    assert long.value is None
    assert "at most 100,000" in str(long.error)


def test_json_that_is_nested_too_deeply_has_no_score() -> None:
    nested = '{"a":' + "[" * 900 + "]" * 900 + "}"
    assert scored("json_fields", nested, nested).value is None


def test_labels_are_compared_without_white_space() -> None:
    assert scored("label_accuracy", "Yes", " Yes\n").value == 1
    assert scored("label_accuracy", "Yes", "yes").value == 0
    assert scored("label_accuracy", "Yes", "yes", ignore_case=True).value == 1
    assert scored("label_accuracy", "Yes", "Yes, it is").label == "Yes, it is"


@pytest.mark.parametrize(("output", "value"), [('{"a": 1}', 1), ("[1]", 0), ("no", 0), ("", 0), ("[" * 100_000, 0)])
def test_json_is_an_object(output: str, value: float) -> None:
    assert scored("json_valid", "", output).value == value


def test_fields_of_json_are_compared_one_by_one() -> None:
    expected = '{"city": "Lima", "count": 1, "ok": true, "tags": ["a", 1.0]}'
    result = scored("json_fields", expected, '{"city": "Lima", "count": 1.0, "ok": 1, "tags": ["a", 1], "more": 2}')
    assert result.fields == {"city": True, "count": True, "ok": False, "tags": True}
    assert result.value == pytest.approx(3 / 4)
    assert scored("json_fields", expected, "no JSON").value == 0
    assert scored("json_fields", expected, '{"city": "Lima"}', fields=["city"]).value == 1


def test_an_answer_without_the_field_that_a_grader_needs_scores_0_and_says_why() -> None:
    options = {"input": "{{ sample.output_json.city }}", "operation": "eq"}
    missing = scored("string_check", "Lima", "no JSON", **options)
    assert missing.value == 0
    assert "sample.output_json.city" in str(missing.error)
