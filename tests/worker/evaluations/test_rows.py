from __future__ import annotations

import io
import json
from typing import Any

import pytest

from app.domain.datasets.jsonl import Finding
from app.domain.evaluations.graders import EvaluationSettings
from app.domain.evaluations.rows import EvaluationRow, grader_findings, read_rows, selected_indices
from tests.sentences import Reviewed

EXACT = {"type": "string_check", "input": "{{ item.x }}{{ sample.output_text }}", "operation": "eq"}
JUDGE = {"type": "score_model", "model": "m", "input": [{"role": "user", "content": "{{ item.x }}"}]}


def read(*lines: Any) -> list[EvaluationRow | Finding]:
    content = "".join(json.dumps(line) + "\n" for line in lines)
    return list(read_rows(io.BytesIO(content.encode()), 1 << 20))


def row(line: Any) -> EvaluationRow:
    (only,) = read(line)
    assert isinstance(only, EvaluationRow), only
    return only


USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


class TestRows:
    def test_the_last_answer_of_a_chat_line_is_the_expected_one(self) -> None:
        made = row({"messages": [USER, ANSWER, USER, ANSWER], "label": 3})
        assert made.messages == (USER, ANSWER, USER)
        assert (made.item["reference_answer"], made.item["label"]) == ("hello", 3)

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ({"messages": [USER, ANSWER], "reference_answer": "x"}, "x"),  # a field of the row comes first
            ({"messages": [USER, {"role": "assistant", "content": " positive\n"}]}, "positive"),
            ({"prompt": "a", "completion": " b"}, "b"),
            ({"prompt": "a"}, None),
            ({"item": {"messages": [USER, ANSWER]}}, "hello"),  # as OpenAI's evals
        ],
    )
    def test_the_expected_answer_has_no_white_space_around_it(self, line: dict[str, Any], expected: str | None) -> None:
        """As generated ones."""
        assert row(line).item.get("reference_answer") == expected

    def test_a_conversation_without_a_question_is_a_finding(self, reviewed: Reviewed) -> None:
        (finding,) = read({"messages": [ANSWER]})
        assert isinstance(finding, Finding)
        reviewed(finding.message)

    def test_a_bad_role_is_a_finding_of_the_training_rules(self) -> None:
        (finding,) = read({"messages": [{"role": "boss", "content": "x"}]})
        assert isinstance(finding, Finding)
        assert finding.code == "invalid_role"


class TestFindings:
    def test_a_field_that_is_not_there_is_named(self, reviewed: Reviewed) -> None:
        settings = EvaluationSettings.model_validate(
            {"graders": [{"type": "label_accuracy", "name": "label", "reference": "{{ item.label }}"}]}
        )
        (finding,) = grader_findings(row({"messages": [USER, ANSWER]}), settings)
        reviewed(finding.message)
        assert list(grader_findings(row({"messages": [USER], "label": "x"}), settings)) == []

    def test_recorded_answers_must_be_strings(self) -> None:
        settings = EvaluationSettings.model_validate({"reference": {"field": "old"}})
        assert [each.code for each in grader_findings(row({"prompt": "a", "old": 3}), settings)] == ["missing_field"]
        assert list(grader_findings(row({"prompt": "a", "old": "b"}), settings)) == []

    @pytest.mark.parametrize(
        ("grader", "reference", "code"),
        [
            (EXACT | {"reference": "{{ item.x }}"}, "x" * 100_001, "text_too_long"),
            (EXACT | {"reference": "{{ item.x }}" * 1000}, "x" * 101, "text_too_long"),
            (EXACT | {"reference": "{{ item.x }}" * 1600}, "x" * 1_000_000, "text_too_long"),
            (JUDGE, "x" * 1_000_001, "text_too_long"),
            ({"type": "json_fields"}, "{" + ",".join(f'"{n}":0' for n in range(101)) + "}", "invalid_reference"),
            ({"type": "json_fields"}, '{"%s":0}' % ("x" * 201), "invalid_reference"),
            ({"type": "json_fields"}, '{"a":"%s"}' % ("x" * 100_000), "text_too_long"),
            ({"type": "label_accuracy"}, "x" * 201, "invalid_reference"),
        ],
    )  # fmt: skip
    def test_a_text_too_large_to_compare_is_a_finding(self, grader: dict[str, Any], reference: str, code: str) -> None:
        grader = {"name": "g", "reference": "{{ item.x }}"} | grader
        if grader["type"] == "score_model":
            del grader["reference"]
        settings = EvaluationSettings.model_validate({"graders": [grader]})
        (finding,) = grader_findings(row({"prompt": "a", "x": reference}), settings)
        assert (finding.line, finding.code) == (1, code)
        assert len(finding.message) < 400

    def test_a_text_with_the_answer_in_it_is_no_finding(self) -> None:
        settings = EvaluationSettings.model_validate({"graders": [EXACT | {"name": "g", "reference": "{{ item.x }}"}]})
        assert list(grader_findings(row({"prompt": "a", "x": "x" * 100_000}), settings)) == []


def test_a_selection_is_always_the_same_and_from_the_whole_file() -> None:
    chosen = selected_indices(1_000, 100)
    assert chosen == selected_indices(1_000, 100)
    assert len(chosen) == 100
    assert max(chosen) > 900
    assert list(selected_indices(5, 100)) == [0, 1, 2, 3, 4]
