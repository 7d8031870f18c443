"""The accuracy and the confusion matrix of labels against a count by hand; a file of 10,000 rows."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

import worker.evaluations.prepare
from app.domain.datasets.render import Renderer
from app.domain.evaluations.graders import EvaluationRequest, EvaluationSettings
from app.domain.evaluations.rows import EvaluationRow, read_rows
from app.domain.evaluations.summary import GraderSummary
from app.system.tokenizer_files import load_renderer
from tests.tiny import make_tiny_base
from tests.worker.evaluations.graded import graded
from worker.evaluations.prepare import EvaluationInputs, InvalidEvaluationFile, read_inputs
from worker.evaluations.summarize import summarize

MAX_LINE_BYTES = 1 << 20
LABELS = ("refund", "card lost", "other")
GRADER = {"type": "label_accuracy", "name": "label", "reference": "{{ item.label }}"}
answers = st.sampled_from([*LABELS, "  refund\n", "Refund", "", "refund, I think"])  # only white space is ignored


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(make_tiny_base(tmp_path_factory.mktemp("base") / "base"))


def settings_of(**options: object) -> EvaluationSettings:
    return EvaluationRequest.model_validate({"file": "file-x", "graders": [GRADER]} | options).settings()


def lines(labels: Sequence[str]) -> bytes:
    rows = [
        {"messages": [{"role": "user", "content": f"message {number}"}], "label": label}
        for number, label in enumerate(labels)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(renderer: Renderer, settings: EvaluationSettings, content: bytes) -> EvaluationInputs:
    return read_inputs(renderer, settings, None, 512, MAX_LINE_BYTES, io.BytesIO(content), io.BytesIO(content))


def label_summary(expected: Sequence[str], base: Sequence[str], adapter: Sequence[str]) -> GraderSummary:
    rows = [row for row in read_rows(io.BytesIO(lines(expected)), MAX_LINE_BYTES) if isinstance(row, EvaluationRow)]
    settings = settings_of()
    (summary,) = summarize(graded(settings, rows, base, adapter)).graders
    return summary


@given(st.lists(st.tuples(st.sampled_from(LABELS), answers, answers), min_size=1, max_size=60))
def test_accuracy_and_confusion_are_those_of_a_count_by_hand(rows: list[tuple[str, str, str]]) -> None:
    expected, base, adapter = zip(*rows, strict=True)
    summary = label_summary(expected, base, adapter)
    assert summary.confusion is not None
    for score, matrix, given_answers in (
        (summary.base, summary.confusion.base, base),
        (summary.adapter, summary.confusion.adapter, adapter),
    ):
        pairs = Counter((label, answer.strip()) for label, answer in zip(expected, given_answers, strict=True))
        right = sum(count for (label, answer), count in pairs.items() if label == answer)
        assert score.mean == pytest.approx(right / len(rows), abs=1e-12)
        assert matrix.labels == sorted(set(expected))
        for label, counts in zip(matrix.labels, matrix.counts, strict=True):
            assert counts[:-1] == [pairs[label, answer] for answer in matrix.labels]
            others = sum(count for (each, answer), count in pairs.items() if each == label and answer not in expected)
            assert counts[-1] == others


def test_a_file_of_10_000_rows_is_checked_whole_and_sampled(renderer: Renderer) -> None:
    content = lines([LABELS[number % 3] for number in range(10_000)])
    settings = settings_of(max_new_tokens=8)
    inputs = read(renderer, settings, content)
    assert (len(inputs.rows), len(inputs.prompts), inputs.rows_in_file) == (500, 500, 10_000)


def test_a_line_that_is_not_selected_is_checked_too(renderer: Renderer) -> None:
    content = lines(["other"] * 50) + b'{"messages": []}\n'
    with pytest.raises(InvalidEvaluationFile, match="Line 51: "):
        read(renderer, settings_of(max_rows=1), content)


def test_the_selected_rows_fit_into_memory(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    content = lines(["other"] * 50)
    monkeypatch.setattr(worker.evaluations.prepare, "MAX_ROWS_BYTES", len(content) // 2)
    settings = settings_of(max_new_tokens=8)
    with pytest.raises(InvalidEvaluationFile, match="Line 26"):
        read(renderer, settings, content)


def test_the_summary_names_at_most_100_fields(renderer: Renderer) -> None:
    content = lines([json.dumps({f"{number}": 0, f"b{number}": 0}) for number in range(51)])
    grader = {"type": "json_fields", "name": "json", "reference": "{{ item.label }}"}
    settings = settings_of(max_new_tokens=8, graders=[grader])
    with pytest.raises(InvalidEvaluationFile, match="102 different fields"):
        read(renderer, settings, content)
