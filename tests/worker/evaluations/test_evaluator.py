"""Evaluations from the request to the summary: with the real generation on a tiny model, and with fake ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func

from app.db import files
from app.db.engine import transaction
from app.db.jobs import evaluations
from app.db.tables import Evaluation, Job
from app.domain.evaluations.spec import EvaluationErrorCode
from app.domain.scheduling.worker_capacity import WorkerCapacity
from tests.commands.trained import make_trained_job
from tests.fork_server import forked
from tests.sentences import Reviewed
from tests.worker.evaluations.conftest import GENERATE, Ask, Evaluate, evaluator, fake, lines, read
from tests.worker.evaluations.plain_answers import plain_answers
from tests.worker.exports.test_exporter import write_real_adapter
from tests.worker.worker_harness import OWNER, WorkerHarness
from worker.evaluations.evaluator import GENERATE_COMMAND
from worker.reconciler import cleanup

GENERATION = GENERATE_COMMAND[-1]


class TestRealGeneration:
    @pytest.fixture
    def trained(self, harness: WorkerHarness, tmp_path: Path) -> Job:
        with transaction(harness.sessions) as session:
            write, storage = write_real_adapter(tmp_path / "base"), harness.resources.storage
            return make_trained_job(session, storage, harness.project, tmp_path / "made", write)

    def test_base_and_adapter_answer_every_row_on_one_loaded_base(
        self, harness: WorkerHarness, evaluate: Evaluate, trained: Job, reviewed: Reviewed
    ) -> None:
        done = evaluate(lines(5), program=forked(GENERATION), max_new_tokens=6)
        assert (done.state, done.error_message) == ("succeeded", None)
        assert done.summary is not None
        reviewed(done.precision)
        assert done.plan["rows"] == 5
        assert done.plan["prompt_tokens"] > 5 * 10
        rows = [json.loads(line) for line in harness.content(str(done.results_file_id)).splitlines()]
        assert [row["question"] for row in rows] == [f"say {n}" for n in range(5)]
        assert any(row["answers"]["base"]["text"] != row["answers"]["adapter"]["text"] for row in rows)
        assert "4 bits" in harness.content(str(done.report_file_id)).decode()
        reviewed(harness.messages(trained)[-1].replace(done.id, "ID"))
        assert list(harness.resources.settings.work_dir.rglob("*.safetensors")) == []

    def test_the_answers_are_those_of_transformers_and_peft(
        self, harness: WorkerHarness, evaluate: Evaluate, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        """In 16 bits, row by row, without padding."""
        done = evaluate(lines(4), program=forked(GENERATION), max_new_tokens=8, base_precision="16-bit")
        reviewed(done.precision)
        rows = [json.loads(line) for line in harness.content(str(done.results_file_id)).splitlines()]
        prompts = [[{"role": "user", "content": f"say {n}"}] for n in range(4)]
        expected = plain_answers(tmp_path / "base", tmp_path / "made" / "step-4", prompts, 8)
        assert [(row["answers"]["base"]["text"], row["answers"]["adapter"]["text"]) for row in rows] == expected


class TestSummary:
    def test_an_evaluation_has_scores_with_an_interval_and_decides_the_delivery(
        self, harness: WorkerHarness, ask: Ask, trained: Job, tmp_path: Path
    ) -> None:
        evaluation = ask(promote_if={"grader": "exact"})
        with transaction(harness.sessions) as session:
            assert evaluations.verdict_on_delivery(session, harness.job(trained)).is_allowed is None
        assert evaluator(harness, tmp_path).run_next()
        done = read(harness, evaluation)
        assert done.summary is not None
        assert done.progress == {"answers": 24, "total_answers": 24}
        (grader,) = done.summary["graders"]
        assert (grader["base"]["mean"], grader["adapter"]["mean"]) == (pytest.approx(4 / 12), 1.0)
        difference = grader["difference"]
        assert 0 < difference["low"] < difference["mean"] < difference["high"] <= 1
        assert done.summary["promotion"]["allowed"] is True
        job = harness.job(trained)
        assert job.evaluation is not None
        assert (job.evaluation["status"], job.evaluation["summary"]) == ("succeeded", done.summary)
        with transaction(harness.sessions) as session:
            assert evaluations.verdict_on_delivery(session, job).is_allowed is True
        report = harness.content(str(done.report_file_id)).decode()
        assert "0.333 | 1.000 | +0.667" in report

    def test_empty_expected_answers_and_cut_answers_are_warnings(self, evaluate: Evaluate, reviewed: Reviewed) -> None:
        cut_code = GENERATE.replace("'is_cut': False", "'is_cut': True")
        done = evaluate(lines(3) + b'{"prompt": "x", "completion": ""}\n', cut_code)
        assert done.summary is not None
        first, *cut = done.summary["warnings"]
        reviewed(first)
        assert len(cut) == 2


class TestBadInput:
    @pytest.mark.parametrize(
        ("content", "options"),
        [
            (b'{"x": 1}\n', {}),
            (b'{"prompt": "a", "completion": "b"}\n', {"graders": [{"type": "json_fields", "name": "json"}]}),
            (b'{"prompt": "' + b"long " * 200 + b'", "completion": "b"}\n', {}),
            (lines(1, tools=[{"type": "function", "function": {"name": "look_up"}}]), {}),
            (b'{"x": 1}\n' * 50, {}),
        ],
        ids=["other shape", "no JSON answer", "too long", "tools", "fifty problems"],
    )
    def test_a_bad_file_fails_the_evaluation_before_anything_is_generated(
        self, evaluate: Evaluate, reviewed: Reviewed, content: bytes, options: dict[str, Any]
    ) -> None:
        done = evaluate(content, "raise SystemExit('not expected')", **options)
        assert (done.state, done.error_code) == ("failed", "invalid_evaluation_file")
        reviewed(str(done.error_message))


class TestFailures:
    def test_a_crash_is_retried_and_fails_in_the_end(
        self, harness: WorkerHarness, ask: Ask, trained: Job, tmp_path: Path
    ) -> None:
        evaluation = ask()
        runner = evaluator(harness, tmp_path, *fake(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)"))
        for _ in range(harness.resources.settings.max_crash_streak):
            end_the_pause(harness, evaluation)
            assert runner.run_next()
        done = read(harness, evaluation)
        assert (done.state, done.error_code) == ("failed", "server_error")
        with transaction(harness.sessions) as session:
            assert evaluations.verdict_on_delivery(session, harness.job(trained)).is_allowed is True  # no promote_if

    def test_a_refusal_of_the_program_is_final(self, evaluate: Evaluate) -> None:
        done = evaluate(code="print('no such model', file=sys.stderr); sys.exit(64)")
        assert (done.error_code, done.error_message) == (EvaluationErrorCode.MODEL_UNAVAILABLE, "no such model")

    def test_a_program_that_leaves_out_rows_gives_no_result(self, evaluate: Evaluate) -> None:
        assert evaluate(code=GENERATE.replace("in prompts:", "in prompts[1:]:")).state == "queued"


class TestLeases:
    def test_a_worker_without_the_base_model_leaves_it(self, harness: WorkerHarness, ask: Ask) -> None:
        ask()
        with transaction(harness.sessions) as session:
            other = WorkerCapacity("cpu", 1 << 40, frozenset({"other"}))
            assert evaluations.claim(session, "a#1", 60, other) is None
            fitting = WorkerCapacity("cpu", 1 << 40, frozenset({"tiny"}))
            assert evaluations.claim(session, "a#1", 60, fitting) is not None

    def test_cleanup_keeps_the_files_of_a_running_one(
        self, harness: WorkerHarness, ask: Ask, trained: Job, tmp_path: Path
    ) -> None:
        evaluation = ask()
        with transaction(harness.sessions) as session:
            files.delete_all(session, [evaluation.file_id, *evaluation.adapter_file_ids])
            evaluations.claim(session, OWNER, 60)
        directory = harness.resources.settings.work_dir / evaluation.id / "attempt-1"
        directory.mkdir(parents=True)
        (directory / "prompts.jsonl").touch()
        cleanup.purge_files(harness.resources)
        cleanup.clean_work_directories(harness.resources)
        assert harness.file(evaluation.file_id).purged_at is None
        assert (directory / "prompts.jsonl").exists()


def end_the_pause(harness: WorkerHarness, evaluation: Evaluation) -> None:
    with transaction(harness.sessions) as session:
        session.get_one(Evaluation, evaluation.id).run_after = func.clock_timestamp()
