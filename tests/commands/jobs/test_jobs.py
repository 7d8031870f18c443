from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.cli.client.http import Client
from app.cli.client.transfers import MIN_RESUMABLE_BYTES
from app.cli.errors import AccessDenied, ServiceUnreachable
from app.db.engine import Sessions, transaction
from app.db.jobs import claims, jobs
from app.db.jobs.events import append_event
from app.db.scheduling import workers
from app.db.tables import Job, Project
from app.domain.jobs.states import Reason
from app.services.access import keys
from app.storage import LocalStorage
from tests.commands.conftest import Tunery
from tests.deadline import until
from tests.factories import (
    append_step_event,
    chat_lines,
    lease_of,
    make_failed_job,
    make_file,
    make_job,
    make_project,
    start_job,
    validate_job,
)
from tests.sentences import Reviewed
from tests.serving import LiveServer

pytestmark = pytest.mark.usefixtures("base_model")


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "valid.jsonl"
    path.write_bytes(chat_lines(11))
    return path


CREATE = ("jobs", "create", "--model", "tiny", "--training-file")


class TestCreate:
    def test_paths_are_uploaded_unless_the_same_bytes_are_stored(
        self, tunery: Tunery, dataset: Path, held_out: Path, live_server: LiveServer, api_key: str
    ) -> None:
        """Not with another purpose, and no file that expires: it may be deleted after the plan that uploaded it."""
        tunery("files", "upload", dataset, "--purpose", "evals")
        expires = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        headers = {"Authorization": f"Bearer {api_key}"}
        httpx2.post(f"{live_server.url}/files", data=expires, files={"file": dataset.read_bytes()}, headers=headers)
        first, second = (tunery(*CREATE, dataset, "--validation-file", held_out, "--json").json for _ in range(2))
        assert len(tunery("files", "list", "--json").json) == 4
        for name in ("training_file", "validation_file"):
            assert first[name] == second[name]
        assert first["training_file"] != first["validation_file"]

    def test_every_option_reaches_the_job(self, tunery: Tunery, dataset: Path) -> None:
        file = tunery("files", "upload", dataset).out.strip()
        job = tunery(
            *CREATE, file, "--suffix", "s", "--seed", 5,
            "--n-epochs", 2, "--batch-size", 3, "--learning-rate", "1e-3", "--lora-r", 8, "--lora-alpha", 32,
            "--lora-dropout", 0.1, "--target-modules", "q_proj,v_proj", "--no-quantization",
            "--set", "warmup_ratio=0.2", "--set", "lora.use_rslora=true", "--metadata", "team=a",
            "--priority", 7, "--worker-label", "fast", "--worker-label", "site=berlin", "--json",
        ).json  # fmt: skip
        hyperparameters = job["method"]["supervised"]["hyperparameters"]
        assert (job["training_file"], job["user_provided_suffix"], job["seed"]) == (file, "s", 5)
        assert [hyperparameters[name] for name in ("n_epochs", "batch_size", "learning_rate")] == [2, 3, 1e-3]
        assert hyperparameters["warmup_ratio"] == 0.2
        assert [job["lora"][name] for name in ("r", "alpha", "dropout", "use_rslora")] == [8, 32, 0.1, True]
        assert job["lora"]["target_modules"] == ["q_proj", "v_proj"]
        assert job["quantization"] is None
        assert job["metadata"] == {"team": "a"}
        assert (job["priority"], job["worker_labels"], job["urgent"]) == (7, ["fast", "site=berlin"], False)
        assert "allow-urgent" in tunery(*CREATE, file, "--urgent").err
        assert tunery(*CREATE, file, "--json").json["quantization"]["type"] == "nf4"

    def test_files_uploaded_for_a_refused_request_are_deleted_and_named(
        self, tunery: Tunery, dataset: Path, held_out: Path, waiting_job: Job
    ) -> None:
        dataset.write_bytes(chat_lines(13))
        before = tunery("files", "list", "--json").json
        create = ("create", "--model", "tiny", "--validation-file", held_out)
        stored = tunery(*CREATE, before[0]["id"], "--set", "lora_rnk=8")
        assert (stored.exit_code, "Deleted" in stored.err) == (2, False)
        for words in (create, ("plan", "--model", "tiny"), ("clone", waiting_job.id)):
            done = tunery("jobs", *words, "--training-file", dataset, "--set", "lora_rnk=8")
            assert done.exit_code == 2
            assert tunery("files", "list", "--json").json == before
            assert done.err.count("Deleted the uploaded") == 1 + (words is create)

    @pytest.mark.parametrize(
        ("command", "path", "error", "exit_code", "kept"),
        [
            ("create", "files", KeyboardInterrupt(), 130, 0),  # during the upload of the second file
            ("create", "fine_tuning/jobs", KeyboardInterrupt(), 130, 0),
            ("create", "fine_tuning/jobs", ServiceUnreachable("The connection broke off."), 1, 2),  # may have been made
            ("plan", "fine_tuning/jobs/plan", KeyboardInterrupt(), 130, 0),
            ("plan", "fine_tuning/jobs/plan", ServiceUnreachable("The connection broke off."), 1, 0),
        ],
    )
    def test_an_interruption_deletes_what_was_uploaded_unless_a_job_may_need_it(
        self, tunery: Tunery, dataset: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch, command: str, path: str,
        error: BaseException, exit_code: int, kept: int,
    ) -> None:  # fmt: skip
        ask, uploads = Client._request_json, iter(range(2))

        def broken(client: Client, method: str, asked: str, **request: Any) -> Any:
            if (method, asked) == ("POST", path) and (path != "files" or next(uploads) == 1):
                raise error
            return ask(client, method, asked, **request)

        files = ("--training-file", dataset, "--validation-file", held_out)
        with monkeypatch.context() as patch:
            patch.setattr(Client, "_request_json", broken)
            done = tunery("jobs", command, "--model", "tiny", *files)
        stored = [one["id"] for one in tunery("files", "list", "--json").json]
        assert (done.exit_code, len(stored)) == (exit_code, kept)
        assert all(file_id in done.err for file_id in stored)

    def test_the_newest_file_and_the_beginning_of_an_id_stand_for_files(self, tunery: Tunery, dataset: Path) -> None:
        first, second = (tunery("files", "upload", dataset).out.strip() for _ in range(2))
        job = tunery(*CREATE, "@last", "--validation-file", first[:-3], "--json").json
        assert (job["training_file"], job["validation_file"]) == (second, first)


class TestRead:
    def test_jobs_are_listed_by_limit_status_and_time(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            failed = make_failed_job(session, storage, project).id
            file = make_file(session, storage, project)
            cancelled, waiting = (make_job(session, project, file).id for _ in range(2))
            jobs.cancel(session, project.id, cancelled)
            session.get_one(Job, failed).group_id = "ftgroup-1"

        def listed(*options: object) -> list[str]:
            return [job["id"] for job in tunery("jobs", "list", *options, "--json").json]

        assert listed() == listed("--limit", 3) == [waiting, cancelled, failed]
        done = tunery("jobs", "list", "--limit", 1)
        assert (waiting in done.out, cancelled in done.out, "newest 1 job;" in done.err) == (True, False, True)
        assert tunery("jobs", "list", "--limit", 3).err == ""
        assert listed("--status", "failed", "--status", "cancelled") == [cancelled, failed]
        assert listed("--created-after", "2026-01-01", "--status", "failed,cancelled") == [cancelled, failed]
        assert listed("--group", "ftgroup-1") == [failed]
        assert listed("--created-before", "2026-01-01T00:00:00Z") == listed("--created-after", "4000000000") == []

    def test_a_text_that_is_no_time_is_a_usage_error(self, tunery: Tunery) -> None:
        for value in ("yesterday", "-1", "2026-13-01", "nan"):
            done = tunery("jobs", "list", f"--created-after={value}")
            assert (done.exit_code, repr(value) in done.err) == (2, True)

    def test_an_admin_lists_the_jobs_of_every_project(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            other = make_project(session, "other")
            made = [make_job(session, each, make_file(session, storage, each)).id for each in (project, other)]
            secret = keys.issue(session, project, "admin", keys.ADMIN_SCOPES).secret
        assert tunery("jobs", "list", "--all-projects").exit_code == AccessDenied.exit_code
        admin = {"TUNERY_API_KEY": secret}
        shown = tunery("jobs", "list", "--all-projects", env=admin).out
        assert all(word in shown for word in (*made, project.id, other.id))
        seen = tunery("jobs", "list", "--all-projects", "--json", env=admin).json
        assert [(job["id"], job["project_id"]) for job in seen] == [(made[1], other.id), (made[0], project.id)]

    def test_a_job_is_shown_with_its_resolved_settings(self, tunery: Tunery, waiting_job: Job) -> None:
        rows = dict(line.split(None, 1) for line in tunery("jobs", "get", waiting_job.id).out.splitlines())
        assert rows["status"] == "validating files"
        assert rows["lora"].split(", ")[:3] == ["r 16", "alpha 32", "dropout 0"]
        assert rows["quantization"].split(", ")[:2] == ["bits 4", "type nf4"]

    def test_events_are_listed_oldest_first_up_to_a_limit(
        self, tunery: Tunery, sessions: Sessions, trained_job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with transaction(sessions) as session:
            job = session.get_one(Job, trained_job.id)
            for number in range(150):
                job.event_seq += 1
                append_event(session, job, f"event {number}")
        monkeypatch.setattr("app.cli.commands.jobs.progress.ALL_EVENTS_PER_PAGE", 60)
        done = tunery("jobs", "events", trained_job.id)
        lines = done.out.splitlines()
        assert trained_job.id in lines[1]
        assert (lines[-1].endswith("event 149"), done.err) == (True, "")
        done = tunery("jobs", "events", trained_job.id, "--limit", 100)
        assert len(done.out.splitlines()) == 1 + 100
        assert "newest 100 events" in done.err
        everything = len(lines) - 1
        done = tunery("jobs", "events", trained_job.id, "--limit", everything, "--json")
        assert (len(done.json), done.err) == (everything, "")


class TestSet:
    def test_priority_and_metadata_are_changed_each_alone(self, tunery: Tunery, waiting_job: Job) -> None:
        done = tunery("jobs", "set", waiting_job.id, "--priority", 7, "--metadata", "team=a", "--metadata", "n=1")
        assert (done.exit_code, done.out.strip()) == (0, waiting_job.id)
        job = tunery("jobs", "set", waiting_job.id, "--priority", -1, "--json").json
        assert (job["priority"], job["metadata"]) == (-1, {"team": "a", "n": "1"})
        job = tunery("jobs", "set", waiting_job.id, "--no-metadata", "--json").json
        assert (job["priority"], job["metadata"]) == (-1, None)
        assert tunery("jobs", "set", waiting_job.id, "--suffix", "other").exit_code == 0
        assert tunery("jobs", "get", "other", "--json").json["id"] == waiting_job.id


class TestPause:
    def test_a_waiting_job_pauses_and_resumes(self, tunery: Tunery, sessions: Sessions, waiting_job: Job) -> None:
        with transaction(sessions) as session:
            validate_job(session)
        assert tunery("jobs", "pause", waiting_job.id).out == f"{waiting_job.id}  paused\n"
        assert tunery("jobs", "get", waiting_job.id, "--json").json["status"] == "paused"
        assert tunery("jobs", "resume", waiting_job.id, "--json").json["status"] == "queued"
        assert tunery("jobs", "cancel", waiting_job.id).out == f"{waiting_job.id}  cancelled\n"
        watched = tunery("jobs", "watch", waiting_job.id)
        assert (watched.exit_code, "Error" in watched.err) == (5, False)

    def test_a_running_job_says_when_it_pauses(self, tunery: Tunery, sessions: Sessions, waiting_job: Job) -> None:
        with transaction(sessions) as session:
            validate_job(session)
            start_job(session)
        paused = tunery("jobs", "pause", waiting_job.id)
        assert (paused.exit_code, "pauses" in paused.out) == (0, True)

    def test_a_job_that_has_ended_is_deleted(self, tunery: Tunery, waiting_job: Job) -> None:
        assert tunery("jobs", "rm", waiting_job.id).exit_code == 2
        assert tunery("jobs", "stop", waiting_job.id).exit_code == 0
        assert tunery("jobs", "rm", waiting_job.id).out == f"{waiting_job.id} deleted\n"
        assert tunery("jobs", "status", waiting_job.id).exit_code == 3


class TestWatch:
    def test_a_finished_job_is_shown_at_once_with_its_newest_events(
        self, tunery: Tunery, trained_job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = tunery("jobs", "watch", trained_job.id)
        assert (done.exit_code, f"tunery adapters download {trained_job.id}" in done.err) == (0, True)
        assert tunery("jobs", "watch", trained_job.id, "--json").err == ""
        lines = done.out.splitlines()
        monkeypatch.setattr("app.cli.commands.jobs.progress.MAX_EARLIER_EVENTS", 2)
        done = tunery("jobs", "watch", trained_job.id)
        assert done.out.splitlines()[0] in lines[1:]
        assert f"tunery jobs events {trained_job.id}" in done.err

    def test_a_created_job_is_watched_with_each_event_once_and_the_job_last(
        self, tunery: Tunery, sessions: Sessions, dataset: Path, background: Callable[..., None]
    ) -> None:
        background(work, sessions)
        done = tunery("jobs", "create", "--model", "tiny", "--training-file", dataset, "--watch", "--json")
        assert (done.exit_code, "(out_of_memory)" in done.err) == (1, True)
        lines: list[dict[str, Any]] = [json.loads(line) for line in done.out.strip().split("\n")]
        ids = [line["id"] for line in lines[:-1]]
        assert len(ids) == len(set(ids))
        assert [line["data"]["step"] for line in lines if line.get("type") == "metrics"] == [1, 2, 3]
        assert (lines[-1]["object"], lines[-1]["status"]) == ("fine_tuning.job", "failed")

    def test_ctrl_c_does_not_affect_the_job_and_prints_how_to_continue(
        self, tunery: Tunery, waiting_job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(_seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("app.cli.commands.jobs.progress.time.sleep", interrupt)
        done = tunery("jobs", "watch", waiting_job.id)
        assert done.exit_code == 130
        assert f"tunery jobs watch {waiting_job.id}" in done.err
        assert tunery("jobs", "get", waiting_job.id, "--json").json["status"] == "validating_files"


@pytest.fixture
def background(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Run something beside the test, and let it end before the database goes."""

    def run(target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        thread.start()
        request.addfinalizer(thread.join)

    return run


def work(sessions: Sessions) -> None:
    """What workers do to the next job: validate, three steps, then the memory is full."""

    def is_waiting() -> bool:
        with transaction(sessions) as session:
            return claims.has_claimable_job(session, "validate")

    until(is_waiting, "a job to be created")
    with transaction(sessions) as session:
        validate_job(session)
    with transaction(sessions) as session:
        job = start_job(session)
    for step in (1, 2, 3):
        with transaction(sessions) as session:
            append_step_event(session, job, step, 3, loss=1.0 / step)
    with transaction(sessions) as session:
        claims.finish_held_attempt(session, lease_of(job), Reason.OUT_OF_MEMORY, "did not fit")


class TestPlan:
    @pytest.mark.parametrize(("memory_bytes", "exit_code"), [(24 << 30, 0), (1 << 20, 1)])
    def test_a_plan_exits_by_the_memory_of_the_workers_and_creates_no_job(
        self,
        tunery: Tunery,
        dataset: Path,
        sessions: Sessions,
        memory_bytes: int,
        exit_code: int,
        reviewed: Reviewed,
    ) -> None:
        about = {"device": "NVIDIA L4", "kind": "cuda", "memory_bytes": memory_bytes}
        with transaction(sessions) as session:
            workers.heartbeat(session, "gpu0@a#1", "gpu", "host", 1, about)
        done = tunery("jobs", "plan", "--model", "tiny", "--training-file", dataset, "--n-epochs", "2")
        assert (done.exit_code, "NVIDIA L4" in done.out) == (exit_code, True), done.err
        reviewed(done.out.splitlines()[0])
        assert tunery("jobs", "list", "--json").json == []
        assert tunery("files", "list", "--json").json == []

    def test_warnings_are_printed_by_a_plan_and_by_the_creation(self, tunery: Tunery, dataset: Path) -> None:
        arguments = ["--model", "tiny", "--training-file", dataset, "--validation-file", dataset]
        [warning] = tunery("jobs", "plan", *arguments, "--json").json["warnings"]
        assert warning["message"] in tunery("jobs", "plan", *arguments).out
        assert warning["message"] in tunery("jobs", "create", *arguments).err

    def test_a_stored_file_is_neither_uploaded_nor_deleted(self, tunery: Tunery, dataset: Path) -> None:
        file = tunery("files", "upload", dataset).out.strip()
        for named in (dataset, file[:12]):
            done = tunery("jobs", "plan", "--model", "tiny", "--training-file", named, "--json")
            assert (done.json["training_file"], "ploaded" in done.err) == (file, False)
        assert [one["id"] for one in tunery("files", "list", "--json").json] == [file]

    def test_an_upload_that_the_command_cannot_delete_any_more_expires(
        self, tunery: Tunery, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As after a kill, in one request and in parts."""
        monkeypatch.setattr("app.cli.client.transfers._delete_uploaded", lambda *_: None)
        for limit in (MIN_RESUMABLE_BYTES, 0):
            monkeypatch.setattr("app.cli.client.transfers.MIN_RESUMABLE_BYTES", limit)
            assert tunery("jobs", "plan", "--model", "tiny", "--training-file", dataset).exit_code == 0
        expiries = [one["expires_at"] - one["created_at"] for one in tunery("files", "list", "--json").json]
        assert expiries == [3600, 3600]


@pytest.mark.parametrize(("state", "exit_code"), [("failed", 1), ("cancelled", 5)])
def test_wait_ends_with_the_job_and_exits_with_its_status_on_request(
    tunery: Tunery, waiting_job: Job, sessions: Sessions, state: str, exit_code: int
) -> None:
    def end() -> None:
        with transaction(sessions) as session:
            if state == "cancelled":
                jobs.cancel(session, waiting_job.project_id, waiting_job.id)
                return
            validate_job(session)
            claims.finish_held_attempt(session, lease_of(start_job(session)), Reason.OUT_OF_MEMORY, "no memory")

    with ThreadPoolExecutor() as threads:
        ended = threads.submit(end)
        done = tunery("jobs", "wait", waiting_job.id, "--exit-status")
    ended.result()
    assert (done.out.split(), done.exit_code) == ([waiting_job.id, state], exit_code)
    assert tunery("jobs", "wait", waiting_job.id).exit_code == 0


def test_wait_exits_with_0_after_success_and_with_3_without_the_job(tunery: Tunery, trained_job: Job) -> None:
    assert tunery("jobs", "wait", trained_job.id, "--exit-status").exit_code == 0
    assert tunery("jobs", "wait", trained_job.id, "--json").json["status"] == "succeeded"
    assert tunery("jobs", "wait", "ftjob-000000000000000000000000").exit_code == 3
