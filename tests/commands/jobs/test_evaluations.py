from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.db.engine import Sessions, transaction
from app.db.jobs import evaluations
from app.db.jobs.leases import Lease
from app.db.tables import Evaluation, Job, Project
from app.domain.evaluations.spec import EvaluationErrorCode
from app.storage import LocalStorage
from tests.api_objects import EVALUATION
from tests.commands.conftest import Tunery
from tests.deadline import until
from tests.factories import fail_attempt, make_file
from tests.sentences import Reviewed

OWNER = "gpu0@a#1"
PRECISION = "4 bits (nf4, as in the training), computed in bfloat16"
ABOUT_ANSWER = {"tokens": 3, "cut": False, "error": None}
ROW = {
    "line": 1,
    "question": "Where is my card?",
    "reference_answer": "shipping",
    "answers": {"base": {"text": "A card\nis a card."} | ABOUT_ANSWER, "adapter": {"text": "shipping"} | ABOUT_ANSWER},
    "scores": {"label": {"base": 0.0, "adapter": 1.0}},
    "errors": {},
}


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    path = tmp_path / "heldout.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


@pytest.fixture
def work(sessions: Sessions, storage: LocalStorage, project: Project) -> Iterator[Callable[..., None]]:
    """Ends the first evaluation that is requested, as a worker would: with a result, or with an error."""
    threads: list[threading.Thread] = []

    def work(error: str | None = None) -> None:
        def end() -> bool:
            with transaction(sessions) as session:
                held = evaluations.claim(session, OWNER, 60)
                if held is None:
                    return False
                lease = Lease(held.id, held.attempt, OWNER)
                if error is not None:
                    fail_attempt(session, Evaluation, lease, EvaluationErrorCode.INVALID_FILE, error)
                    return True
                job = session.get_one(Job, held.job_id)
                made = [
                    make_file(session, storage, project, content, "fine-tune-results", name, job, line_count=None).id
                    for name, content in (("r.jsonl", json.dumps(ROW).encode() + b"\n"), ("r.md", b"# Report\n"))
                ]
                files = dict(zip(("results_file_id", "report_file_id"), made, strict=True))
                evaluations.succeed(session, lease, "done", precision=PRECISION, summary=EVALUATION["summary"], **files)
                return True

        thread = threading.Thread(target=lambda: until(end, "an evaluation to be requested"))
        thread.start()
        threads.append(thread)

    yield work
    for thread in threads:
        thread.join()


def settings_of(sessions: Sessions) -> dict[str, Any]:
    with transaction(sessions) as session:
        return dict(session.query(Evaluation).one().settings)


class TestEval:
    def test_an_evaluation_is_awaited_and_printed(
        self, tunery: Tunery, trained_job: Job, heldout: Path, work: Callable[..., None], tmp_path: Path,
        reviewed: Reviewed,
    ) -> None:  # fmt: skip
        work()
        done = tunery("eval", trained_job.id, "--file", heldout, "--report", tmp_path / "report.md")
        assert done.exit_code == 0, done.err
        reviewed(done.out)
        assert (tmp_path / "report.md").read_text() == "# Report\n"

    @pytest.mark.parametrize(
        ("options", "references"),
        [
            ((), ["{{ item.reference_answer }}"]),
            (("--expected-field", "recorded_answer", "--json-fields"), [None, "{{ item.recorded_answer }}"]),
        ],
    )
    def test_graders_compare_with_the_expected_answer_or_another_field(
        self, tunery: Tunery, trained_job: Job, heldout: Path, sessions: Sessions, options: Sequence[str],
        references: list[str | None],
    ) -> None:  # fmt: skip
        assert tunery("eval", trained_job.id, "--file", heldout, "--detach", *options).out.startswith("fteval-")
        assert [each.get("reference") for each in settings_of(sessions)["graders"]] == references

    def test_options_and_a_file_of_graders_become_the_request(
        self, tunery: Tunery, trained_job: Job, heldout: Path, sessions: Sessions, tmp_path: Path
    ) -> None:
        graders = tmp_path / "graders.json"
        graders.write_text('[{"type": "json_valid", "name": "json"}]')
        done = tunery("eval", trained_job.id, "--file", heldout, "--detach", "--graders", graders, "--label", "intent",
                      "--similarity", "rouge_l", "--max-rows", 9, "--16-bit", "--reference-field", "old",
                      "--promote-if", "label:0.05")  # fmt: skip
        assert done.exit_code == 0, done.err
        settings = settings_of(sessions)
        assert [each["name"] for each in settings["graders"]] == ["json", "label", "rouge_l"]
        assert settings["graders"][1]["reference"] == "{{ item.intent }}"
        assert (settings["max_rows"], settings["base_precision"]) == (9, "16-bit")
        assert (settings["reference"]["field"], settings["promote_if"]) == ("old", {"grader": "label", "margin": 0.05})

    def test_a_failed_evaluation_is_an_error_with_its_code(
        self, tunery: Tunery, trained_job: Job, heldout: Path, work: Callable[..., None]
    ) -> None:
        work("Line 1: the prompt is empty.")
        done = tunery("eval", trained_job.id, "--file", heldout)
        assert (done.exit_code, "(invalid_evaluation_file)" in done.err) == (1, True)


class TestCompare:
    def test_a_comparison_has_both_answers_and_deletes_its_file(
        self, tunery: Tunery, trained_job: Job, work: Callable[..., None]
    ) -> None:
        work()
        done = tunery("compare", trained_job.id, "--prompt", "Where is my card?", "--system", "Be short.", "--json")
        assert done.json == {"precision": PRECISION, "answers": [ROW]}
        assert [file["purpose"] for file in tunery("files", "list", "--json").json].count("evals") == 0


class TestEvals:
    @pytest.fixture
    def evaluated(self, tunery: Tunery, trained_job: Job, heldout: Path, work: Callable[..., None]) -> Job:
        work()
        label = ("--label", "reference_answer")
        assert tunery("eval", trained_job.id, "--file", heldout, *label).exit_code == 0
        return trained_job

    def test_the_result_is_the_same_in_the_job_and_its_evaluations(self, tunery: Tunery, evaluated: Job) -> None:
        headline = tunery("jobs", "get", evaluated.id, "--json").json["evaluation"]["headline"]
        assert headline["adapter"]["right"] == 186
        assert headline["brief"] in tunery("evals", "list", evaluated.id).out
        assert headline["brief"] in tunery("jobs", "list").out
        for command in (("jobs", "get", evaluated.id), ("evals", "get", evaluated.id)):
            assert headline["text"] in tunery(*command).out
        (one,) = tunery("evals", "list", evaluated.id, "--json").json
        assert tunery("evals", "get", evaluated.id, one["id"], "--json").json == one

    def test_rows_have_both_answers_on_one_line_and_can_be_filtered(
        self, tunery: Tunery, evaluated: Job, reviewed: Reviewed
    ) -> None:
        reviewed(tunery("evals", "rows", evaluated.id).out)
        (row,) = tunery("evals", "rows", evaluated.id, "--json").json
        assert (row["verdict"], row["scores"], row["answers"]) == ("right", ROW["scores"], ROW["answers"])
        assert tunery("evals", "rows", evaluated.id, "--filter", "got_worse", "--json").json == []

    def test_one_that_was_made_elsewhere_is_awaited(
        self, tunery: Tunery, trained_job: Job, heldout: Path, work: Callable[..., None]
    ) -> None:
        for error, exit_code in ((None, 0), ("Line 1: the prompt is empty.", 1)):
            made = tunery("eval", trained_job.id, "--file", heldout, "--detach").out.strip()
            work(error)
            awaited = tunery("evals", "wait", trained_job.id)
            assert (awaited.exit_code, made in awaited.err) == (exit_code, True)

    def test_one_that_a_job_requests_begins_after_it(
        self, tunery: Tunery, base_model: str, dataset: Path, heldout: Path
    ) -> None:
        evaluation = json.dumps({"file": tunery("files", "upload", heldout).out.strip(), "graders": []})
        asked = ("--model", base_model, "--training-file", dataset, "--set", f"evaluation={evaluation}")
        job = tunery("jobs", "create", *asked).out.strip()
        shown = tunery("evals", "get", job)
        assert (shown.exit_code, "validating_files" in shown.err, "--file" in shown.err) == (3, True, False)

    def test_a_running_one_has_its_progress_and_is_cancelled(
        self, tunery: Tunery, trained_job: Job, heldout: Path, sessions: Sessions
    ) -> None:
        assert tunery("evals", "get", trained_job.id).exit_code == 3
        tunery("eval", trained_job.id, "--file", heldout, "--detach")
        with transaction(sessions) as session:
            held = evaluations.claim(session, OWNER, 60)
            assert held is not None
            held.progress = {"answers": 1, "total_answers": 2}
            held.estimated_finish = datetime.now(UTC) + timedelta(hours=1)
        shown, rows = tunery("evals", "get", trained_job.id).out, tunery("evals", "rows", trained_job.id)
        assert (rows.exit_code, rows.out) == (0, "")
        for text in (shown, rows.err):
            assert ("running" in text, "1 of 2" in text) == (True, True)
            assert re.search(r"(1:00:00|59:\d\d) left", text)
        evaluation_id = tunery("evals", "get", trained_job.id, "--json").json["id"]
        assert tunery("evals", "cancel", evaluation_id).out.endswith("cancelled\n")
        assert "cancelled" in tunery("evals", "rows", evaluation_id).err
        assert tunery("evals", "get", trained_job.id, "--json").json["estimated_finish"] is None
