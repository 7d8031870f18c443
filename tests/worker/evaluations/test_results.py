"""The headline, the distribution, the confusion matrix and the rows of an evaluation, against counts by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest

from app.db.engine import transaction
from app.db.jobs.evaluations import newest_headline
from app.db.tables import Evaluation, File
from app.domain.evaluations import results
from app.domain.evaluations.graders import EvaluationRequest, EvaluationSettings
from app.domain.evaluations.headline import Headline, headline
from app.domain.evaluations.results import ResultIndex, RowVerdict, index_rows, page_of
from app.domain.evaluations.rows import EvaluationRow, read_rows
from app.domain.evaluations.spec import Scored
from app.errors import BadRequest
from app.services.jobs import evaluations as service
from app.services.resources import Page
from tests.sentences import Reviewed
from tests.worker.evaluations.conftest import EXACT, Evaluate, lines
from tests.worker.evaluations.graded import graded
from tests.worker.worker_harness import WorkerHarness
from worker.evaluations.summarize import _distribution, summarize

SIMILAR = {
    "type": "text_similarity", "name": "similar", "evaluation_metric": "fuzzy_match",
    "input": "{{ sample.output_text }}", "reference": "{{ item.reference_answer }}",
}  # fmt: skip
ROWS = 12  # of which the fake generation answers each third one with the base model, and all with the adapter


def settings_of(*graders: dict[str, Any], **options: Any) -> EvaluationSettings:
    return EvaluationRequest.model_validate({"file": "file-x", "graders": list(graders)} | options).settings()


def headline_of(settings: EvaluationSettings, expected: Sequence[str], base: list[str], adapter: list[str]) -> Headline:
    content = b"".join(json.dumps({"prompt": "?", "completion": one}).encode() + b"\n" for one in expected)
    rows = [row for row in read_rows(io.BytesIO(content), 1 << 20) if isinstance(row, EvaluationRow)]
    found = headline(summarize(graded(settings, rows, base, adapter)).model_dump(mode="json"))
    assert found is not None
    return found


class TestHeadline:
    def test_it_counts_right_rows_and_has_the_interval_in_points(self, reviewed: Reviewed) -> None:
        found = headline_of(settings_of(EXACT), ["a"] * 30, ["b"] * 30, ["a"] * 25 + ["b"] * 5)
        assert (found.adapter.right, found.adapter.rows, found.base.right) == (25, 30, 0)
        reviewed(found.text)
        reviewed(found.brief)

    @pytest.mark.parametrize(
        ("rows", "base", "right"), [(1, "b", 0), (2, "a", 2)], ids=["one row without an interval", "equal answers"]
    )
    def test_counts_and_signs_are_those_of_the_rows(self, rows: int, base: str, right: int, reviewed: Reviewed) -> None:
        found = headline_of(settings_of(EXACT), ["a"] * rows, [base] * rows, ["a"] * rows)
        assert (found.adapter.right, found.base.right) == (rows, right)
        reviewed(found.text)

    def test_scores_between_0_and_1_have_means(self, reviewed: Reviewed) -> None:
        found = headline_of(settings_of(SIMILAR), ["abcd"] * 4, ["ab"] * 4, ["abcd", "abc", "abcd", "abc"])
        assert found.adapter.right is None
        assert found.adapter.mean == pytest.approx((1 + 6 / 7) / 2)
        reviewed(found.brief)

    def test_scores_of_only_0_and_1_are_counted_whatever_the_grader_may_give(self, reviewed: Reviewed) -> None:
        expected = ['{"item": "pen"}'] * 3
        fields = settings_of({"type": "json_fields", "name": "fields"})
        found = headline_of(fields, expected, ["no object"] * 3, [*expected[1:], '{"item": "cup"}'])
        assert (found.adapter.right, found.base.right, found.adapter.rows) == (2, 0, 3)
        reviewed(found.text)

    def test_the_grader_that_decides_on_the_promotion_is_the_main_one(self) -> None:
        settings = settings_of(SIMILAR, EXACT, promote_if={"grader": "exact"})
        assert headline_of(settings, ["a", "a"], ["b", "b"], ["a", "a"]).grader == "exact"

    def test_without_graders_there_is_none(self) -> None:
        assert headline({"graders": []}) is headline(None) is None


@pytest.mark.parametrize(("labels", "is_matrix"), [(2, True), (4, True), (5, False)])
def test_few_repeated_expected_texts_are_classes(labels: int, is_matrix: bool) -> None:
    expected = [f"label {number % labels}" for number in range(8)]
    content = b"".join(json.dumps({"prompt": "?", "completion": one}).encode() + b"\n" for one in expected)
    rows = [row for row in read_rows(io.BytesIO(content), 1 << 20) if isinstance(row, EvaluationRow)]
    (grader,) = summarize(graded(settings_of(EXACT), rows, ["label 0"] * 8, expected)).graders
    assert (grader.confusion is not None) == is_matrix
    if grader.confusion is not None:
        assert [row[0] for row in grader.confusion.base.counts] == [8 // labels] * labels
        assert [row[n] for n, row in enumerate(grader.confusion.adapter.counts)] == [8 // labels] * labels


def test_a_distribution_has_each_score_in_the_part_of_the_range_that_it_belongs_to() -> None:
    (grader,) = settings_of(SIMILAR).graders
    scores = {"base": [0.0, 0.05, 0.1, 0.95], "adapter": [1.0, 1.0, 0.999, 0.5]}
    found = _distribution(grader, {model: list(map(Scored, values)) for model, values in scores.items()})
    assert (found.low, found.high) == (0, 1)
    assert found.base == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found.adapter == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]


@pytest.fixture
def evaluation(evaluate: Evaluate) -> Evaluation:
    return evaluate(lines(ROWS, topic=lambda number: number % 2), graders=[EXACT, SIMILAR])


def stored_rows(
    harness: WorkerHarness, evaluation: Evaluation, page: Page, verdict: RowVerdict | None = None
) -> tuple[list[dict[str, Any]], bool]:
    with transaction(harness.sessions) as session:
        row = session.get_one(Evaluation, evaluation.id)
        return service.read_rows(session, harness.resources.storage, row, page, verdict)


class TestRows:
    def test_they_are_those_of_the_files(self, harness: WorkerHarness, evaluation: Evaluation) -> None:
        """Both answers, the expected one, the prompt and the scores, by a computation from the file and the answers."""
        rows, has_more = stored_rows(harness, evaluation, Page(101))
        assert (len(rows), has_more) == (ROWS, False)
        for number, row in enumerate(rows):
            expected, base = f"it is {number}", f"it is {number}" if number % 3 == 0 else "no"
            assert row["messages"] == [{"role": "user", "content": f"say {number}"}]
            assert (row["id"], row["line"], row["reference_answer"]) == (str(number + 1), number + 1, expected)
            assert {model: one["text"] for model, one in row["answers"].items()} == {"base": base, "adapter": expected}
            assert row["scores"]["exact"] == {"base": float(base == expected), "adapter": 1.0}
            assert row["verdict"] == RowVerdict.RIGHT

    def test_its_end_was_expected_when_it_came(self, harness: WorkerHarness, evaluation: Evaluation) -> None:
        with transaction(harness.sessions) as session:
            row = session.get_one(Evaluation, evaluation.id)
            assert row.started_at is not None
            assert row.estimated_finish is not None
            assert row.finished_at is not None
            assert row.started_at < row.estimated_finish <= row.finished_at
            assert row.expected_finish is None  # it has ended
            row.state = "running"
            assert row.expected_finish == row.estimated_finish
            session.expunge(row)

    def test_the_newest_headline_of_the_model_names_its_evaluation(
        self, harness: WorkerHarness, evaluation: Evaluation
    ) -> None:
        with transaction(harness.sessions) as session:
            found = newest_headline(session, evaluation.model)
            assert newest_headline(session, "ft:other") is None
        assert found is not None
        assert (found["id"], found["file"], found["adapter"]["right"], found["base"]["right"]) == (
            evaluation.id,
            evaluation.file_id,
            ROWS,
            ROWS // 3,
        )

    def test_the_stored_index_is_that_of_the_file(
        self, harness: WorkerHarness, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with transaction(harness.sessions) as session:
            row = session.get_one(Evaluation, evaluation.id)
            settings, index = EvaluationSettings.model_validate(row.settings), row.row_index
            file = harness.resources.storage.open(session.get_one(File, row.results_file_id).storage_key)
            assert index is not None
            with file as content:
                assert ResultIndex.model_validate(index) == index_rows(content, settings)
            graders = (row.summary or {})["graders"]
            assert [sum(one["distribution"]["adapter"]) if one["distribution"] else None for one in graders] == [
                None,
                ROWS,
            ]
            row.row_index = None  # as that of an earlier release
        assert len(stored_rows(harness, evaluation, Page(101))[0]) == ROWS
        monkeypatch.setattr(service, "MAX_SCANNED_BYTES", 40)
        with pytest.raises(BadRequest, match="no index"):
            stored_rows(harness, evaluation, Page(101))


INDEX = ResultIndex(ends=[10, 20, 30, 40, 50], verdicts="rgsgu")


class TestPages:
    @pytest.mark.parametrize(
        ("after", "limit", "verdict", "numbers", "has_more"),
        [
            (0, 2, None, [1, 2], True),
            (4, 2, None, [5], False),
            (9, 2, None, [], False),
            (0, 1, RowVerdict.GOT_WORSE, [2], True),
            (2, 1, RowVerdict.GOT_WORSE, [4], False),
            (0, 9, RowVerdict.STILL_WRONG, [3], False),
        ],
    )
    def test_a_page_has_the_next_rows_with_the_verdict(
        self, after: int, limit: int, verdict: RowVerdict | None, numbers: list[int], has_more: bool
    ) -> None:
        assert page_of(INDEX, after, limit, verdict) == (numbers, has_more)

    def test_a_page_has_a_maximum_of_bytes_and_at_least_one_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results, "MAX_PAGE_BYTES", 25)
        assert page_of(INDEX, 0, 100, None) == ([1, 2], True)
        monkeypatch.setattr(results, "MAX_PAGE_BYTES", 5)
        assert page_of(INDEX, 3, 100, None) == ([4], True)

    def test_only_the_rows_of_a_page_are_read(self) -> None:
        """A results file may have a gigabyte."""

        class Counted(io.BytesIO):
            read_bytes = 0

            def read(self, size: int | None = -1, /) -> bytes:
                found = super().read(size)
                self.read_bytes += len(found)
                return found

        content = [json.dumps({"line": n}).encode() + b" " * 10_000 + b"\n" for n in range(5)]
        ends = [sum(map(len, content[: n + 1])) for n in range(5)]
        file = Counted(b"".join(content))
        rows = list(results.read_rows(file, ResultIndex(ends=ends, verdicts="rgsgu"), [2, 4]))
        assert [(row["line"], row["verdict"]) for row in rows] == [(1, "got_worse"), (3, "got_worse")]
        assert file.read_bytes == len(content[1]) + len(content[3])


@pytest.mark.parametrize(
    ("grader", "base", "adapter", "verdict"),
    [
        (EXACT, 1.0, 0.0, "got_worse"),
        (EXACT, 0.0, 0.0, "still_wrong"),
        (EXACT, 0.0, 1.0, "right"),
        (EXACT, 1.0, None, "unscored"),
        (SIMILAR, 0.4, 0.9, "still_wrong"),
        (SIMILAR | {"pass_threshold": 0.8}, 0.4, 0.9, "right"),
        (SIMILAR | {"pass_threshold": 0.8}, 1.0, 0.9, "got_worse"),
    ],
)
def test_the_verdict_on_a_row(grader: dict[str, Any], base: float, adapter: float | None, verdict: str) -> None:
    (one,) = settings_of(grader).graders
    row = {"scores": {one.name: {"base": base, "adapter": adapter}}}
    assert results.verdict_on(row, one) == verdict
