"""What the pages of jobs show of them: curves, differing settings, requested values, panels, prefilled evaluations."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import httpx2
import pytest

from app.domain.artifacts.exports import ExportType, Quantization
from app.domain.deliveries.served_check import Verdict
from app.domain.evaluations.graders import EvaluationSettings
from app.domain.jobs.states import UNFINISHED_WORK, Reason, WorkState
from app.web.api_client import ApiClient, Json
from app.web.pages.jobs import jobs, wording
from app.web.pages.jobs.compare import RESULT_COLUMNS, best_job, distinct_names, job_settings
from app.web.pages.jobs.jobs import NO_CURVE, Curves
from app.web.pages.jobs.metrics import ChartedJob
from app.web.pages.jobs.new_job import with_evaluation
from app.web.pages.jobs.panels import deliveries, exports, panel, records
from app.web.pages.jobs.panels.configuration import asked_values
from app.web.pages.jobs.panels.evaluations import GRADERS, progress_text
from app.web.pages.jobs.panels.result import ROW_COLUMNS
from tests.api_objects import FINISHED_JOB, NEW_JOB
from tests.dashboard.stub_api import stub_client

JOB = {"id": "ftjob-1", "status": "running", "trained_steps": 2, "training_file": "file-1"}
CURVE = {"steps": [1, 2], "train_losses": [2.0, 1.0], "best_valid_loss": 1.5}
CURVES, FILE = "/v1/fine_tuning/loss_curves", "/v1/files/file-1"
EVALUATION = {"file": "file-1", "graders": []}
CLONES: dict[str, dict[str, Any]] = {
    "first": {"cloned_from": None, "request": {"evaluation": EVALUATION, "seed": 7}},
    "second": {"cloned_from": "first", "request": {"seed": 8}},
    "third": {"cloned_from": "second", "request": {}},
    "without": {"cloned_from": "second", "request": {"evaluation": None}},
    "old": {"cloned_from": None, "request": None},
}


def load(curves_of: list[list[dict[str, Any]]]) -> tuple[Curves, list[str]]:
    """The curves after these lists of jobs were shown one after the other, and the paths of the requests."""
    paths: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.path)
        if request.url.path != CURVES:
            return httpx2.Response(200, json={"filename": "a.jsonl"})
        ids = request.url.params["jobs"].split(",")
        return httpx2.Response(200, json={"data": [CURVE | {"fine_tuning_job_id": one} for one in ids]})

    async def show() -> Curves:
        curves = Curves(stub_client(answer))
        for listed in curves_of:
            await curves.load(listed)
        return curves

    return asyncio.run(show()), paths


def test_a_curve_is_requested_again_only_when_its_job_has_moved_on() -> None:
    curves, paths = load([[JOB], [JOB], [JOB | {"trained_steps": 3}]])
    assert sorted(paths) == [FILE, CURVES, CURVES]
    assert (curves.last_train_loss(JOB), curves.of(JOB)["best_valid_loss"], curves.filename(JOB)) == (
        "1.000",
        1.5,
        "a.jsonl",
    )


def test_fifty_jobs_of_one_file_need_two_requests() -> None:
    curves, paths = load([[JOB | {"id": f"ftjob-{number}"} for number in range(50)]])
    assert sorted(paths) == [FILE, CURVES]
    assert curves.of({"id": "ftjob-49"})["best_valid_loss"] == 1.5


@pytest.mark.parametrize(
    ("answers", "finish", "text"),
    [
        (0, 7_260, "0 of 60 answers (30 rows, 2 models), at most 2 h 1 min left"),
        (32, 240, "32 of 60 answers (30 rows, 2 models), about 4 min left"),
        (59, -1, "59 of 60 answers (30 rows, 2 models)"),
        (59, None, "59 of 60 answers (30 rows, 2 models)"),
    ],
)
def test_a_running_evaluation_says_how_much_is_done_and_left(answers: int, finish: float | None, text: str) -> None:
    one = {"progress": {"answers": answers, "total_answers": 60}, "plan": {"rows": 30}}
    assert progress_text(one | {"estimated_finish": None if finish is None else time.time() + finish}) == text


def test_the_result_in_a_table_is_that_of_the_headline() -> None:
    assert wording.result({"evaluation": None}) == {"text": "–"}
    assert wording.result({"evaluation": {"headline": None, "status": "running"}}) == {"text": "running"}
    found = wording.result({"evaluation": {"headline": {"brief": "25 right, base none", "text": "A sentence."}}})
    assert found == {"text": "25 right", "sub": "base none", "title": "A sentence."}


def test_a_row_of_an_evaluation_shows_its_texts_in_one_line() -> None:
    texts = {column.label: column.show for column in ROW_COLUMNS}
    assert texts["Question"]("Two,\n\nplease.\tAnna") == "Two, please. Anna"
    assert texts["Base model"]({"text": "Dora,\r\nhello\x07", "error": None}) == "Dora, hello\\u0007"
    assert texts["Expected"](None) == "–"


def test_a_job_without_a_step_has_no_curve_to_request() -> None:
    _, paths = load([[JOB | {"status": "queued", "trained_steps": None}]])
    assert paths == [FILE]


def test_curves_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_KEPT", 0)
    curves, _ = load([[JOB], [JOB | {"id": "ftjob-2"}]])
    assert curves.of(JOB) == NO_CURVE


def test_jobs_of_the_same_name_have_their_short_ids() -> None:
    first, clone = (FINISHED_JOB | {"id": job_id} for job_id in ("ftjob-4f6e1c0b9d2a", "ftjob-0123456789ab"))
    other = FINISHED_JOB | {"user_provided_suffix": "other"}
    assert distinct_names([first, clone, other]) == ["demo (ftjob-4f6e1c0b)", "demo (ftjob-01234567)", "other"]
    lead, *_ = RESULT_COLUMNS
    assert lead.cell(clone | {"charted": ChartedJob("demo (ftjob-01234567)", [])})["text"] == "demo (ftjob-01234567)"


def scored(name: str, mean: float | None, grader: str = "label", file: str = "file-1", seconds: float = 9.0) -> Json:
    result = {"grader": grader, "adapter": {"mean": mean}, "base": {"mean": 0.25}}
    times = {"started_at": 1, "training_seconds": seconds, "attempt_started_at": None}
    return times | {"id": name, "evaluation": {"file": file, "headline": result}}


@pytest.mark.parametrize(
    ("jobs", "best"),
    [
        ([scored("a", 0.5), scored("b", 0.75), scored("c", None)], "b"),
        ([scored("a", 0.75, seconds=9), scored("b", 0.75, seconds=8)], "b"),
        ([scored("a", 0.25), scored("b", 0.0)], None),
        ([scored("a", 0.5), scored("b", 0.75, grader="exact")], None),
        ([scored("a", 0.5), scored("b", 0.75, file="file-2")], None),
        ([scored("a", 0.5), {"id": "b", "evaluation": None}, {"id": "c", "evaluation": {"headline": None}}], None),
    ],
    ids=["highest", "cheaper of equal ones", "not above the base", "another grader", "other rows", "one score"],
)
def test_the_best_job_has_the_highest_score_on_the_same_rows(jobs: list[Json], best: str | None) -> None:
    found = best_job(jobs)
    assert (found and found["id"]) == best


def test_compared_rates_are_absolute() -> None:
    """A clone states the rate that its original has by a multiplier."""
    assert not {"learning_rate_multiplier"} & job_settings(FINISHED_JOB).keys()


def test_compared_settings_have_dotted_names() -> None:
    settings = job_settings(FINISHED_JOB | {"quantization": None})
    assert (settings["lora.r"], settings["n_epochs"], settings["quantization"]) == ("16", "1", "none")


@pytest.mark.parametrize(
    ("request_body", "asked"),
    [
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": "auto"}}}}, {"method": "dpo", "beta": "auto"}),
        ({"hyperparameters": {"n_epochs": 2, "lora_r": 8}, "seed": 0}, {"n_epochs": 2, "lora.r": 8, "seed": 0}),
        ({"lora": {"rank": 8}, "quantization": None}, {"lora.r": 8, "quantization": "none"}),
        (None, {}),
    ],
)
def test_requested_values_have_the_names_of_the_resolved_settings(request_body: Any, asked: dict[str, Any]) -> None:
    assert asked_values(NEW_JOB | {"request": request_body}) == asked


def test_every_state_and_verdict_of_the_api_has_a_text() -> None:
    assert records.REASONS.keys() <= set(Reason)
    assert deliveries.VERDICTS.keys() == set(Verdict)
    assert exports.TYPES.keys() == exports.NAMES.keys() == set(ExportType)
    assert exports.QUANTIZATIONS.keys() == set(Quantization)
    assert wording.TONES.keys() >= set(WorkState)
    assert set(panel.UNFINISHED) == set(UNFINISHED_WORK)


@pytest.mark.parametrize("name", GRADERS)
def test_the_api_accepts_every_grader(name: str) -> None:
    _, graders = GRADERS[name]
    assert len(EvaluationSettings.model_validate({"graders": graders}).graders) == len(graders)


def test_attempts_number_the_trainings_alone() -> None:
    attempts = [{"kind": kind} for kind in ("validate", "train", "validate", "train")]
    assert [one["number"] for one in records.numbered(attempts)] == [None, 1, None, 2]


class StoredJobs:
    async def get(self, path: str) -> dict[str, Any]:
        return CLONES[path.removeprefix("fine_tuning/jobs/")]


@pytest.mark.parametrize(
    ("name", "request_body"),
    [
        ("first", {"evaluation": EVALUATION, "seed": 7}),
        ("second", {"evaluation": EVALUATION, "seed": 8}),
        ("third", {"evaluation": EVALUATION}),
        ("without", {"evaluation": None}),
        ("old", {}),
    ],
)
def test_a_clone_has_the_evaluation_of_the_job_that_requested_it(name: str, request_body: Any) -> None:
    job = asyncio.run(with_evaluation(cast(ApiClient, StoredJobs()), CLONES[name]))
    assert job["request"] == request_body
