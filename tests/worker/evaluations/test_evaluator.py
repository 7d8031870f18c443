"""Evaluations from the request to the summary: with the real generation on a tiny model, and with fake ones."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func

from app.db import files
from app.db.engine import transaction
from app.db.jobs import evaluations
from app.db.tables import Evaluation, Job
from app.domain.evaluations.graders import CreateEvaluation
from app.domain.evaluations.spec import EvaluationErrorCode
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.services.jobs import evaluations as service
from app.system import artifact_directory, model_files
from tests.commands.trained import make_trained_job
from tests.deadline import until
from tests.factories import make_file
from tests.fork_server import forked
from tests.sentences import Reviewed
from tests.worker.evaluations.plain_answers import plain_answers
from tests.worker.exports.test_exporter import write_real_adapter
from tests.worker.worker_harness import WorkerHarness
from worker.evaluations.evaluator import GENERATE_COMMAND, Evaluator
from worker.node.slot import try_lock
from worker.reconciler import cleanup

OWNER = "gpu0@test#1"
GENERATION = GENERATE_COMMAND[-1]
EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reference_answer }}",
    "operation": "eq",
}
# A generation in a tenth of a second: the adapter is right on every row, the base on each third one.
GENERATE = """
prompts = [json.loads(line) for line in open(directory / 'prompts.jsonl')]
with open(directory / 'answers.jsonl', 'w') as out:
    print(json.dumps({'device': 'cpu', 'compute_dtype': 'bfloat16'}), file=out)
    for p in prompts:
        for model in ('base', 'adapter'):
            right = model == 'adapter' or p['row'] % 3 == 0
            text = f"it is {p['row']}" if right else 'no'
            print(json.dumps({'row': p['row'], 'model': model, 'text': text, 'tokens': 3, 'is_cut': False}), file=out)
"""


def fake(tmp_path: Path, code: str = GENERATE) -> tuple[str, ...]:
    """A generation program that runs `code`; `directory` is its work directory."""
    program = tmp_path / "fake_generation.py"
    start = "import json, os, signal, sys, time\nfrom pathlib import Path\ndirectory = Path(sys.argv[1])\n"
    program.write_text(start + code)
    return sys.executable, str(program)


def lines(count: int = 12, **extra: Any) -> bytes:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": f"it is {n}"},
            ]
        }
        | {key: value(n) if callable(value) else value for key, value in extra.items()}
        for n in range(count)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def write_light_adapter(base: Path) -> Callable[[Path, int], Path]:
    """The files that an evaluation reads; only the real generation needs the weights."""

    def write(directory: Path, step: int) -> Path:
        directory.mkdir(parents=True)
        (directory / "adapter_model.safetensors").write_bytes(bytes(8))
        about = {
            "base_model": {"name": "tiny", "manifest_sha256": model_files.hash_directory(base)[1]},
            "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
            "step": step,
        }
        artifact_directory.write_manifest(directory, about)
        return directory

    return write


@pytest.fixture
def trained(harness: WorkerHarness, tmp_path: Path, request: pytest.FixtureRequest) -> Job:
    """A job with an adapter for the registered base model; a real one for the tests of the real generation."""
    is_real = request.cls is TestRealGeneration
    write = (write_real_adapter if is_real else write_light_adapter)(tmp_path / "base")
    with transaction(harness.sessions) as session:
        return make_trained_job(session, harness.resources.storage, harness.project, tmp_path / "made", write)


Ask = Callable[..., Evaluation]


@pytest.fixture
def ask(harness: WorkerHarness, trained: Job) -> Ask:
    def ask(content: bytes | None = None, **settings: Any) -> Evaluation:
        with transaction(harness.sessions) as session:
            file = make_file(
                session, harness.resources.storage, harness.project, content or lines(), "evals", "heldout.jsonl"
            )
            request = CreateEvaluation.model_validate({"file": file.id, "graders": [EXACT]} | settings)
            endpoints = harness.resources.settings.endpoints
            return service.create(session, harness.resources.hints, trained, request, endpoints)

    return ask


def evaluator(harness: WorkerHarness, tmp_path: Path, *command: str, owner: str = OWNER) -> Evaluator:
    lock = partial(try_lock, tmp_path / "trainer.lock")
    return Evaluator(harness.resources, owner, lock, None, command or fake(tmp_path))


def read(harness: WorkerHarness, evaluation: Evaluation) -> Evaluation:
    with transaction(harness.sessions) as session:
        return session.get_one(Evaluation, evaluation.id)


class TestRealGeneration:
    def test_base_and_adapter_answer_every_row_on_one_loaded_base(
        self, harness: WorkerHarness, ask: Ask, trained: Job, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        evaluation = ask(lines(5), max_new_tokens=6)
        assert evaluator(harness, tmp_path, *forked(GENERATION)).run_next()
        done = read(harness, evaluation)
        assert (done.state, done.error_message) == ("succeeded", None)
        assert done.summary is not None
        reviewed(done.precision)
        assert done.plan["rows"] == 5
        assert done.plan["prompt_tokens"] > 5 * 10
        rows = [json.loads(line) for line in harness.content(str(done.results_file_id)).splitlines()]
        assert [row["question"] for row in rows] == [f"say {n}" for n in range(5)]
        assert any(row["answers"]["base"]["text"] != row["answers"]["adapter"]["text"] for row in rows)
        assert "4 bits" in harness.content(str(done.report_file_id)).decode()
        reviewed(harness.messages(trained)[-1].replace(evaluation.id, "ID"))
        assert list(harness.resources.settings.work_dir.rglob("*.safetensors")) == []

    def test_the_answers_are_those_of_transformers_and_peft(
        self, harness: WorkerHarness, ask: Ask, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        """In 16 bits, row by row, without padding."""
        evaluation = ask(lines(4), max_new_tokens=8, base_precision="16-bit")
        assert evaluator(harness, tmp_path, *forked(GENERATION)).run_next()
        done = read(harness, evaluation)
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

    def test_empty_expected_answers_and_cut_answers_are_warnings(
        self, harness: WorkerHarness, ask: Ask, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        evaluation = ask(lines(3) + b'{"prompt": "x", "completion": ""}\n')
        evaluator(harness, tmp_path, *fake(tmp_path, GENERATE.replace("'is_cut': False", "'is_cut': True"))).run_next()
        done = read(harness, evaluation)
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
        ],
        ids=["other shape", "no JSON answer", "too long", "tools"],
    )
    def test_a_bad_file_fails_the_evaluation_before_anything_is_generated(
        self,
        harness: WorkerHarness,
        ask: Ask,
        tmp_path: Path,
        reviewed: Reviewed,
        content: bytes,
        options: dict[str, Any],
    ) -> None:
        evaluation = ask(content, **options)
        assert evaluator(harness, tmp_path, *fake(tmp_path, "raise SystemExit('not expected')")).run_next()
        done = read(harness, evaluation)
        assert (done.state, done.error_code) == ("failed", "invalid_evaluation_file")
        reviewed(str(done.error_message))

    def test_a_bad_file_names_its_first_problems(
        self, harness: WorkerHarness, ask: Ask, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        evaluation = ask(b'{"x": 1}\n' * 50)
        evaluator(harness, tmp_path).run_next()
        reviewed(str(read(harness, evaluation).error_message))


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

    def test_a_refusal_of_the_program_is_final(self, harness: WorkerHarness, ask: Ask, tmp_path: Path) -> None:
        evaluation = ask()
        evaluator(
            harness, tmp_path, *fake(tmp_path, "print('no such model', file=sys.stderr); sys.exit(64)")
        ).run_next()
        done = read(harness, evaluation)
        assert (done.error_code, done.error_message) == (EvaluationErrorCode.MODEL_UNAVAILABLE, "no such model")

    def test_a_program_that_leaves_out_rows_gives_no_result(
        self, harness: WorkerHarness, ask: Ask, tmp_path: Path
    ) -> None:
        evaluation = ask()
        runner = evaluator(harness, tmp_path, *fake(tmp_path, GENERATE.replace("in prompts:", "in prompts[1:]:")))
        assert runner.run_next()
        assert read(harness, evaluation).state == "queued"

    def test_a_cancel_kills_the_generation_and_stores_nothing(
        self, harness: WorkerHarness, ask: Ask, trained: Job, tmp_path: Path
    ) -> None:
        evaluation = ask()
        started = tmp_path / "started"
        slow = f"Path({str(started)!r}).touch(); time.sleep(60)"
        thread = threading.Thread(target=evaluator(harness, tmp_path, *fake(tmp_path, slow)).run_next)
        thread.start()
        until(started.exists, "the generation")
        with transaction(harness.sessions) as session:
            service.cancel(session, session.get_one(Evaluation, evaluation.id))
        thread.join(20)
        assert not thread.is_alive()
        done = read(harness, evaluation)
        assert (done.state, done.results_file_id) == ("cancelled", None)
        job = harness.job(trained)
        assert job.evaluation is not None
        assert job.evaluation["status"] == "cancelled"
        assert list(harness.resources.settings.work_dir.rglob("prompts.jsonl")) == []


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
