"""The state `validating_files`: errors that fail a job, warnings, and the queued job."""

from __future__ import annotations

import errno
import io
import json
import threading
import tracemalloc
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db.engine import transaction
from app.db.operations import stored_objects
from app.db.operations.stored_objects import keys_without_row
from app.db.tables import BaseModelRow, File, Job, JobTokens
from app.domain.datasets.report import build_report
from app.domain.jobs.spec import DataParameters, RunSpec
from app.system.artifact_directory import sha256_file
from app.system.tokenizer_files import load_renderer
from tests.deadline import until
from tests.factories import chat_lines
from tests.sentences import Reviewed
from tests.tiny import make_tiny_base, panic_at_many_a
from tests.worker.worker_harness import WorkerHarness
from worker.jobs import job_tokens, workdir
from worker.jobs.base_and_adapter import verify_base
from worker.jobs.prepare import load_inputs, trainer_spec
from worker.reconciler import cleanup
from worker.validation import Validator

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def jsonl(*examples: object) -> bytes:
    return b"".join(json.dumps(example).encode() + b"\n" for example in examples)


def chat(question: str, answer: str, **assistant: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer} | assistant]}


def validate(harness: WorkerHarness, job: Job) -> Job:
    assert Validator(harness.resources, "cpu0@test#1").run_next()
    return harness.job(job)


def template_file(harness: WorkerHarness) -> Path:
    with transaction(harness.sessions) as session:
        return Path(session.get_one(BaseModelRow, "tiny").directory) / "chat_template.jinja"


def warnings_of(harness: WorkerHarness, job: Job) -> list[str]:
    return [event.message for event in harness.events(job) if event.level == "warn"]


class TestGoodFiles:
    def test_the_job_is_queued_and_an_event_has_the_counts(self, harness: WorkerHarness) -> None:
        job = harness.create_job(chat_lines(12), validation=chat_lines(3))
        queued = validate(harness, job)
        assert (queued.state, queued.lease_owner, queued.attempt, queued.train_attempts) == ("queued", None, 1, 0)
        event = harness.events(job)[-1]
        # One token a byte: 1 + 10 + 1 + 1 for a question, 1 + 10 + 7 + 1 + 1 for an answer, 2 more with 10 and with 11;
        # trained are the answer's text and its end token.
        counts = {"examples": 12, "tokens": 400, "labelled_tokens": 98, "cut": 0, "empty": 0}
        assert event.data == counts | {"validation": event.data["validation"]}
        assert event.data["validation"]["examples"] == 3

    def test_a_hint_for_the_gpu_queue_leaves_after_the_commit(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = harness.create_job()
        sent: list[tuple[str, str]] = []
        monkeypatch.setattr(
            harness.resources.hints, "send_in_background", lambda queue: sent.append((queue, harness.job(job).state))
        )
        validate(harness, job)
        assert sent == [("gpu", "queued")]


class TestStoredTokens:
    def test_an_attempt_gets_them_and_they_go_with_the_job(self, harness: WorkerHarness) -> None:
        job = validate(harness, harness.create_job(chat_lines(12), validation=chat_lines(3)))
        (row,) = self.rows(harness)
        assert sorted(row.storage_keys) == ["training", "validation"]
        with transaction(harness.sessions) as session:
            named = {each.key: each.sha256 for each in stored_objects.named_objects(session.connection())}
            assert keys_without_row(session, list(row.storage_keys.values())) == []
        assert named.items() >= {row.storage_keys[role]: row.sha256[role] for role in row.storage_keys}.items()

        run = self.prepared(harness, job)
        assert run.rendered_at == row.rendered_at
        for role, file, wanted in (
            ("training", run.training_tokens, run.training_file_sha256),
            ("validation", run.validation_tokens, run.validation_file_sha256),
        ):
            assert file is not None
            assert (sha256_file(file.path), file.dataset_sha256) == (row.sha256[role], wanted)
        harness.resources.storage.delete(row.storage_keys["training"])  # an attempt without them tokenizes
        run = self.prepared(harness, job)
        assert (run.training_tokens, run.validation_tokens is None) == (None, False)

        cleanup.drop_leftovers(harness.resources)
        assert len(self.rows(harness)) == 1
        harness.cancel(job)
        cleanup.drop_leftovers(harness.resources)
        assert (self.rows(harness), harness.stored_files("tokens")) == ([], [])

    @pytest.mark.parametrize("fault", ["too many", "no disk", "full storage"])
    def test_a_job_without_them_is_queued(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        job = harness.create_job()
        if fault == "too many":
            monkeypatch.setattr(job_tokens, "MAX_BYTES", 100)
        elif fault == "no disk":
            directory = workdir.attempt_directory(harness.resources.settings.work_dir, job.id, 1)
            (directory / "training.tokens").mkdir(parents=True)
        else:
            monkeypatch.setattr(harness.resources.storage, "put", full)
        assert validate(harness, job).state == "queued"
        monkeypatch.undo()
        assert [row.storage_keys for row in self.rows(harness)] == [{}]
        assert harness.stored_files("tokens") == []
        assert self.prepared(harness, job).training_tokens is None

    def rows(self, harness: WorkerHarness) -> list[JobTokens]:
        with transaction(harness.sessions) as session:
            return list(session.scalars(select(JobTokens)))

    def prepared(self, harness: WorkerHarness, job: Job) -> RunSpec:
        """The run of an attempt of the job; its directory is left."""
        with transaction(harness.sessions) as session:
            row = session.get_one(Job, job.id)
            inputs = load_inputs(session, row)
        directory = workdir.attempt_directory(harness.resources.settings.work_dir, job.id, 7)
        workdir.create_empty(directory)
        datasets = {"training": inputs.training_file}
        if inputs.validation_file:
            datasets["validation"] = inputs.validation_file
        tokens = job_tokens.fetch(harness.resources.storage, inputs.tokens, datasets, directory)
        base = verify_base(inputs.base)
        paths = Path("training.jsonl"), Path("validation.jsonl") if inputs.validation_file else None
        return trainer_spec(harness.resources.settings, row, inputs, base, *paths, None, tokens=tokens).run


DPO = {"method": {"type": "dpo"}}


def pair(question: str, good: str, bad: str) -> dict[str, object]:
    answers = ([{"role": "assistant", "content": answer}] for answer in (good, bad))
    prompt = {"messages": [{"role": "user", "content": question}]}
    return {"input": prompt} | dict(zip(("preferred_output", "non_preferred_output"), answers, strict=True))


class TestMethods:
    def test_a_dpo_job_uses_pairs(self, harness: WorkerHarness) -> None:
        pairs = [pair(f"{n}", "yes", "no") for n in range(10)]
        job = harness.create_job(jsonl(*pairs, pair("a", "same", "same"), pair("y" * 600, "beyond", "it")), body=DPO)
        assert validate(harness, job).state == "queued"
        data = harness.events(job)[-1].data
        assert (data["examples"], data["empty"]) == (12, 2)
        assert data["labelled_tokens"] == 10 * (4 + 3)

    def test_a_long_text_is_split_without_loss(self, harness: WorkerHarness) -> None:
        job = harness.create_job(jsonl(*[{"text": "x" * 1200}] * 10))
        assert validate(harness, job).state == "queued"
        data = harness.events(job)[-1].data
        assert (data["cut"], data["empty"], data["labelled_tokens"]) == (0, 0, 10 * 1200)
        assert data["tokens"] == 10 * (1201 + 2)  # each of two more pieces repeats the last token of the piece before


class TestBadFiles:
    @pytest.mark.parametrize(
        ("files", "body", "code"),
        [
            ((jsonl(*[GOOD] * 10, {"texts": "hi"}),), {}, "invalid_training_file"),
            ((jsonl(*[pair("a", "b", "c")] * 12),), {}, "invalid_training_file"),
            ((jsonl(*[chat("a", "b", weight=0)] * 10),), {}, "invalid_training_file"),
            ((jsonl(*[pair("hi", "ho", "ho")] * 10),), DPO, "invalid_training_file"),
            ((chat_lines(9),), {}, "invalid_n_examples"),
            ((chat_lines(12), jsonl({"messages": []})), {}, "invalid_validation_file"),
        ],
        ids=["no format", "pairs", "nothing to train on", "equal answers", "nine examples", "validation file"],
    )
    def test_a_file_that_cannot_be_used_fails_the_job(
        self, harness: WorkerHarness, reviewed: Reviewed, files: tuple[bytes, ...], body: dict[str, object], code: str
    ) -> None:
        failed = validate(harness, harness.create_job(*files, body=body))
        param = "validation_file" if len(files) > 1 else "training_file"
        assert (failed.state, failed.error_code, failed.error_param) == ("failed", code, param)
        reviewed(str(failed.error_message))

    def test_ten_findings_are_in_the_message_and_the_events_data(self, harness: WorkerHarness) -> None:
        job = harness.create_job(jsonl(GOOD, *[{"messages": []}] * 12))
        failed = validate(harness, job)
        event = harness.events(job)[-1]
        assert event.level == "error"
        assert event.message == failed.error_message
        assert [finding["line"] for finding in event.data["findings"]] == list(range(2, 12))
        finding = event.data["findings"][0]
        assert (finding["line"], finding["code"]) == (2, "invalid_messages")
        assert event.data["total"] == 12

    def test_a_file_with_very_many_errors_is_not_read_to_its_end(self, harness: WorkerHarness) -> None:
        job = harness.create_job(jsonl(*[{"messages": []}] * 5000))
        validate(harness, job)
        assert harness.events(job)[-1].data["total"] == 100

    def test_a_missing_tokenizer_fails_the_job_and_names_the_operator(self, harness: WorkerHarness) -> None:
        job = harness.create_job()
        (template_file(harness).parent / "tokenizer.json").unlink()
        failed = validate(harness, job)
        assert (failed.error_code, failed.error_param) == ("model_unavailable", "model")


class TestWarnings:
    def test_truncated_and_empty_examples_are_warnings_with_line_numbers(self, harness: WorkerHarness) -> None:
        examples = [chat("hi", f"{n}") for n in range(10)]
        examples += [chat("short", "x" * 600), chat("y" * 600, "beyond"), chat("a", "b", weight=0)]
        job = harness.create_job(jsonl(*examples))
        assert validate(harness, job).state == "queued"
        event = next(event for event in harness.events(job) if event.level == "warn")
        assert event.data == {"code": "cut", "count": 2, "first_lines": [11, 12], "file": job.training_file_id}
        done = harness.events(job)[-1].data
        assert (done["examples"], done["cut"], done["empty"]) == (13, 2, 2)

    def test_the_job_has_the_warnings_of_its_events(self, harness: WorkerHarness) -> None:
        special = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "a"}]}
        rows = [chat("a", f"{n}") for n in range(10)] + [chat("a", "3"), chat("q", ""), special]
        job = harness.create_job(jsonl(*rows), validation=jsonl(chat("b", "b"), chat("a", "3"), chat("a", "5")))
        done = validate(harness, job)
        assert (done.state, [event.level for event in harness.events(done)]) == (
            "queued",
            ["info"] * 2 + ["warn"] * 4 + ["info"],
        )
        warnings = [(each["code"], each["file"], each["count"], each["first_lines"]) for each in done.warnings]
        assert warnings == [
            ("empty_answer", job.training_file_id, 1, [12]),
            ("duplicate_rows", job.training_file_id, 1, [11]),
            ("control_token", job.training_file_id, 1, [13]),
            ("overlap", job.validation_file_id, 2, [2, 3]),
        ]
        assert [each["message"] for each in done.warnings] == warnings_of(harness, job)

    def test_the_warnings_are_those_of_the_successful_attempt(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = harness.create_job(jsonl(*[GOOD] * 10))
        monkeypatch.setattr("worker.validation.stream_in_process", lambda *_, **__: 1 / 0)
        assert validate(harness, job).warnings == []
        monkeypatch.undo()
        done = validate(harness, job)
        assert [each["code"] for each in done.warnings] == ["duplicate_rows"]
        assert len([text for text in warnings_of(harness, job) if text.startswith("Training file: ")]) == 1

    def test_the_warnings_of_the_request_are_kept(self, harness: WorkerHarness) -> None:
        job = harness.create_job(jsonl(*[GOOD] * 10))
        ignored = {"code": "without_effect", "message": "ignored", "file": None, "count": 1, "first_lines": []}
        with transaction(harness.sessions) as session:
            session.get_one(Job, job.id).warnings = [ignored]
        assert [each["code"] for each in validate(harness, job).warnings] == ["without_effect", "duplicate_rows"]


class TestLineRules:
    """A job keeps the line rules of its creation."""

    def two_calls(self) -> bytes:
        expected = {"role": "assistant", "content": "a", "refusal": "No way"}
        rows = [{"messages": [{"role": "user", "content": f"{n}"}, expected]} for n in range(10)]
        return jsonl(*rows) + b"\x0b\n"

    def test_a_new_job_rejects_lines_that_would_lose_content(self, harness: WorkerHarness) -> None:
        failed = validate(harness, harness.create_job(self.two_calls()))
        assert (failed.state, failed.error_code) == ("failed", "invalid_training_file")

    def test_an_older_job_is_validated_with_its_line_rules(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.domain.jobs.resolve.LINE_RULES", 1)
        job = harness.create_job(self.two_calls())
        assert validate(harness, job).state == "queued"
        assert harness.events(job)[-1].data["examples"] == 10


class TestInterruptions:
    @pytest.mark.usefixtures("slow_template")
    def test_a_cancel_stops_the_validation_within_an_example(self, harness: WorkerHarness) -> None:
        job = harness.create_job(chat_lines(400))
        thread = self.start_validation(harness)
        until(lambda: harness.job(job).lease_owner, "the claim")
        harness.cancel(job)
        event_count = len(harness.events(job))
        thread.join(10)
        assert not thread.is_alive()
        assert (harness.job(job).state, len(harness.events(job))) == ("cancelled", event_count)

    def test_a_shutdown_requeues_the_validation(self, harness: WorkerHarness, slow_template: str) -> None:
        job = harness.create_job(chat_lines(400))
        thread = self.start_validation(harness)
        until(lambda: harness.job(job).lease_owner, "the claim")
        harness.resources.stop.set()
        thread.join(10)
        waiting = harness.job(job)
        assert (waiting.state, waiting.lease_owner, waiting.crash_streak) == ("validating_files", None, 0)
        harness.resources.stop.clear()
        template_file(harness).write_text(slow_template)
        assert validate(harness, job).state == "queued"

    @pytest.mark.usefixtures("slow_template")
    def test_the_lease_is_renewed_during_the_validation(self, harness: WorkerHarness) -> None:
        job = harness.create_job(chat_lines(40))
        self.start_validation(harness)
        until(lambda: harness.job(job).lease_owner, "the claim")
        first = harness.job(job).lease_expires_at
        until(lambda: harness.job(job).lease_expires_at != first, "a renewal")
        until(lambda: harness.job(job).state == "queued", "the end")

    def test_a_missing_object_fails_the_job(self, harness: WorkerHarness) -> None:
        job = harness.create_job()
        with transaction(harness.sessions) as session:
            harness.resources.storage.delete(session.get_one(File, job.training_file_id).storage_key)
        assert validate(harness, job).error_code == "server_error"

    def test_an_unavailable_storage_counts_no_crash(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = harness.create_job()

        def missing(key: str) -> object:
            raise OSError(errno.EIO, "Input/output error", "/data/storage/objects/files/x")

        monkeypatch.setattr(harness.resources.storage, "open", missing)
        waiting = validate(harness, job)
        assert (waiting.state, waiting.reason, waiting.crash_streak) == ("validating_files", "storage_unavailable", 0)
        assert "/data" not in harness.messages(job)[-1]

    def test_an_internal_error_is_retried_three_times(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = harness.create_job()
        monkeypatch.setattr("worker.validation.stream_in_process", lambda *_, **__: 1 / 0)
        states = [validate(harness, job).state for _ in range(3)]
        assert states == ["validating_files", "validating_files", "failed"]
        assert harness.job(job).error_code == "worker_crash_loop"

    @pytest.fixture
    def slow_template(self, harness: WorkerHarness) -> str:
        """The template as it was. Now each text takes some 10 ms."""
        file = template_file(harness)
        template = file.read_text()
        file.write_text("{% for i in range(99999) %}{% endfor %}" + template)
        return template

    def start_validation(self, harness: WorkerHarness) -> threading.Thread:
        thread = threading.Thread(target=Validator(harness.resources, "cpu0@test#1").run_next)
        thread.start()
        harness.threads.append(thread)
        return thread


class TestHostileModels:
    def test_a_template_without_an_end_fails_the_job_and_names_the_operator(self, harness: WorkerHarness) -> None:
        job = harness.create_job()
        template_file(harness).write_text("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3)
        failed = validate(harness, job)
        assert (failed.state, failed.error_code, failed.error_param) == ("failed", "model_unavailable", "model")

    def test_a_text_at_which_the_tokenizer_fails_is_a_finding(self, harness: WorkerHarness) -> None:
        job = harness.create_job(chat_lines(12) + jsonl(chat("a" * 300 + "!", "b")))
        panic_at_many_a(template_file(harness).parent)
        failed = validate(harness, job)
        assert failed.error_code == "invalid_training_file"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Five times the examples, of half a kilobyte each, need no more memory; 64 are rendered at a time."""
    peaks, renderer = [], load_renderer(make_tiny_base(tmp_path / "base"))
    for examples in (80, 400):
        file = io.BytesIO(jsonl(*(chat(f"{n}", "x" * 400) for n in range(examples))))
        tracemalloc.start()
        build_report(renderer, DataParameters(), 1 << 20, file)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
