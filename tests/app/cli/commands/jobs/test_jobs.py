from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.cli.client.http import Client
from app.cli.client.transfers import MIN_RESUMABLE_BYTES
from app.cli.commands.jobs.jobs import item_text
from app.cli.errors import AccessDenied, ServiceUnreachable
from app.db.engine import Sessions, transaction
from app.db.jobs import claims, jobs
from app.db.jobs.events import append_event
from app.db.scheduling import workers
from app.db.tables import Job, Project
from app.domain.jobs.states import Reason
from app.services.access import keys
from app.storage import LocalStorage
from tests.app.cli.conftest import Tunery
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
from tests.serving import LiveServer

pytestmark = pytest.mark.usefixtures("base_model")


@pytest.fixture
def waiting_job(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Job:
    with transaction(sessions) as session:
        return make_job(session, project, make_file(session, storage, project))


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "valid.jsonl"
    path.write_bytes(chat_lines(11))
    return path


class TestCreate:
    def test_paths_are_uploaded_and_the_id_is_printed(self, tunery: Tunery, dataset: Path, held_out: Path) -> None:
        arguments = ["--model", "tiny", "--training-file", dataset, "--validation-file", held_out]
        done = tunery("jobs", "create", *arguments)
        assert done.exit_code == 0, done.err
        job = tunery("jobs", "get", done.out.strip(), "--json").json
        assert job["training_file"] != job["validation_file"]
        assert len(tunery("files", "list", "--json").json) == 2

    def test_a_stored_file_with_the_same_sha256_is_used(
        self, tunery: Tunery, dataset: Path, tmp_path: Path, held_out: Path
    ) -> None:
        """Not one of another purpose, with other bytes, or that expires."""
        tunery("files", "upload", dataset, "--purpose", "evals")
        stored, *_ = (tunery("files", "upload", path).out.strip() for path in (dataset, held_out))
        copy = tmp_path / "another-name.jsonl"
        copy.write_bytes(dataset.read_bytes())
        done = tunery("jobs", "create", "--model", "tiny", "--training-file", copy, "--json")
        assert done.json["training_file"] == stored
        assert (stored in done.err, len(tunery("files", "list", "--json").json)) == (True, 3)

    def test_a_file_that_expires_is_not_used(
        self, tunery: Tunery, dataset: Path, live_server: LiveServer, api_key: str
    ) -> None:
        """It may be that of a plan which still runs, and is deleted afterwards."""
        fields = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        headers = {"Authorization": f"Bearer {api_key}"}
        answer = httpx2.post(
            f"{live_server.root}/v1/files", data=fields, files={"file": dataset.read_bytes()}, headers=headers
        )
        job = tunery("jobs", "create", "--model", "tiny", "--training-file", dataset, "--json").json
        assert job["training_file"] != answer.json()["id"]

    def test_every_option_reaches_the_job(self, tunery: Tunery, dataset: Path) -> None:
        file = tunery("files", "upload", dataset).out.strip()
        job = tunery(
            "jobs", "create", "--model", "tiny", "--training-file", file, "--suffix", "s", "--seed", 5,
            "--n-epochs", 2, "--batch-size", 3, "--learning-rate", "1e-3", "--lora-r", 8, "--lora-alpha", 32,
            "--lora-dropout", 0.1, "--target-modules", "q_proj,v_proj", "--no-quantization",
            "--set", "warmup_ratio=0.2", "--set", "lora.use_rslora=true", "--metadata", "team=a", "--json",
        ).json  # fmt: skip
        hyperparameters = job["method"]["supervised"]["hyperparameters"]
        assert (job["training_file"], job["user_provided_suffix"], job["seed"]) == (file, "s", 5)
        assert [hyperparameters[name] for name in ("n_epochs", "batch_size", "learning_rate")] == [2, 3, 1e-3]
        assert hyperparameters["warmup_ratio"] == 0.2
        assert [job["lora"][name] for name in ("r", "alpha", "dropout", "use_rslora")] == [8, 32, 0.1, True]
        assert job["lora"]["target_modules"] == ["q_proj", "v_proj"]
        assert job["quantization"] is None
        assert job["metadata"] == {"team": "a"}

    def test_without_options_it_is_qlora(self, tunery: Tunery, dataset: Path) -> None:
        job = tunery("jobs", "create", "--model", "tiny", "--training-file", dataset, "--json").json
        assert job["quantization"]["type"] == "nf4"

    def test_what_the_server_refuses_is_a_usage_error_in_its_words(self, tunery: Tunery, dataset: Path) -> None:
        done = tunery("jobs", "create", "--model", "tiny", "--training-file", dataset, "--set", "lora_rnk=8")
        assert done.exit_code == 2
        assert "method.supervised.hyperparameters.lora_rnk" in done.err

    def test_an_unknown_model_is_not_found(self, tunery: Tunery, dataset: Path) -> None:
        done = tunery("jobs", "create", "--model", "tony", "--training-file", dataset)
        assert done.exit_code in (2, 3)
        assert "tony" in done.err

    def test_neither_an_id_nor_a_path_is_refused_before_anything_is_uploaded(
        self, tunery: Tunery, dataset: Path
    ) -> None:
        arguments = ["--model", "tiny", "--training-file", dataset, "--validation-file", "nothing.jsonl"]
        done = tunery("jobs", "create", *arguments)
        assert done.exit_code == 2
        assert "neither a file id" in done.err
        assert tunery("files", "list", "--json").json == []

    @pytest.mark.parametrize(
        "command", [["create", "--validation-file", "{held_out}"], ["plan"]], ids=lambda command: command[0]
    )
    def test_files_uploaded_for_a_refused_request_are_deleted_and_named(
        self, tunery: Tunery, dataset: Path, held_out: Path, command: list[str]
    ) -> None:
        words = [word.format(held_out=held_out) for word in command]
        done = tunery("jobs", *words, "--model", "tiny", "--training-file", dataset, "--set", "lora_rnk=8")
        assert done.exit_code == 2
        assert tunery("files", "list", "--json").json == []
        assert done.err.count("Deleted the uploaded file") == 1 + ("--validation-file" in words)

    def test_a_refused_clone_leaves_no_upload_either(self, tunery: Tunery, dataset: Path, waiting_job: Job) -> None:
        before = tunery("files", "list", "--json").json
        done = tunery("jobs", "clone", waiting_job.id, "--training-file", dataset, "--set", "lora_rnk=8")
        assert done.exit_code == 2
        assert tunery("files", "list", "--json").json == before

    def test_a_refused_request_leaves_files_alone_that_were_there_before(self, tunery: Tunery, dataset: Path) -> None:
        file = tunery("files", "upload", dataset).out.strip()
        done = tunery("jobs", "create", "--model", "tiny", "--training-file", file, "--set", "lora_rnk=8")
        assert (done.exit_code, "Deleted" in done.err) == (2, False)
        assert [one["id"] for one in tunery("files", "list", "--json").json] == [file]

    @pytest.mark.parametrize("path", ["files", "fine_tuning/jobs"])
    def test_ctrl_c_deletes_what_was_uploaded(
        self, tunery: Tunery, dataset: Path, held_out: Path, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """During the upload of the second file, or while the job is created."""
        ask, uploads = Client._request_json, iter(range(2))

        def interrupted(client: Client, method: str, asked: str, **request: Any) -> Any:
            if method == "POST" and asked == path and (path != "files" or next(uploads) == 1):
                raise KeyboardInterrupt
            return ask(client, method, asked, **request)

        monkeypatch.setattr(Client, "_request_json", interrupted)
        done = tunery("jobs", "create", "--model", "tiny", "--training-file", dataset, "--validation-file", held_out)
        assert done.exit_code == 130
        assert "Deleted the uploaded file" in done.err
        assert tunery("files", "list", "--json").json == []

    def test_if_the_job_may_have_been_created_the_files_are_kept_and_named(
        self, tunery: Tunery, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask = Client._request_json

        def broken(client: Client, method: str, asked: str, **request: Any) -> Any:
            answer = ask(client, method, asked, **request)
            if asked == "fine_tuning/jobs":
                raise ServiceUnreachable("The connection broke off.")
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(Client, "_request_json", broken)
            done = tunery("jobs", "create", "--model", "tiny", "--training-file", dataset)
        (file,) = [one["id"] for one in tunery("files", "list", "--json").json]
        assert (done.exit_code, f"the uploaded files are kept: {file}" in done.err) == (1, True)

    def test_the_newest_file_and_the_beginning_of_an_id_stand_for_files(self, tunery: Tunery, dataset: Path) -> None:
        first, second = (tunery("files", "upload", dataset).out.strip() for _ in range(2))
        job = tunery(
            "jobs", "create", "--model", "tiny", "--training-file", "@last", "--validation-file", first[:-3], "--json"
        ).json
        assert (job["training_file"], job["validation_file"]) == (second, first)

    def test_a_missing_option_is_a_usage_error(self, tunery: Tunery) -> None:
        assert tunery("jobs", "create", "--model", "tiny").exit_code == 2


class TestRead:
    def test_the_list_is_newest_first_and_goes_over_pages(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            file = make_file(session, storage, project)
            made = [make_job(session, project, file).id for _ in range(3)]
        assert [job["id"] for job in tunery("jobs", "list", "--json").json] == made[::-1]
        assert made[2] in tunery("jobs", "list", "--limit", 1).out
        done = tunery("jobs", "list", "--limit", 1)
        assert (made[1] in done.out, "Shows the newest 1 jobs" in done.err) == (False, True)
        assert tunery("jobs", "list", "--limit", 3).err == ""

    def test_the_list_can_be_filtered(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            failed = make_failed_job(session, storage, project).id
            file = make_file(session, storage, project)
            cancelled, waiting = (make_job(session, project, file).id for _ in range(2))
            jobs.cancel(session, project.id, cancelled)

        def listed(*options: object) -> list[str]:
            return [job["id"] for job in tunery("jobs", "list", *options, "--json").json]

        assert listed("--status", "failed", "--status", "cancelled") == [cancelled, failed]
        assert listed("--status", "validating_files", "--limit", 1) == [waiting]
        assert listed("--created-after", "2026-01-01", "--status", "failed,cancelled") == [cancelled, failed]
        assert listed("--created-before", "2026-01-01T00:00:00Z") == listed("--created-after", "4000000000") == []
        assert "No jobs match" in tunery("jobs", "list", "--status", "paused").err

    def test_a_filter_that_is_none_is_a_usage_error(self, tunery: Tunery) -> None:
        done = tunery("jobs", "list", "--status", "done")
        assert (done.exit_code, "validating_files" in done.err) == (2, True)
        for value in ("yesterday", "-1", "2026-13-01", "nan"):
            done = tunery("jobs", "list", f"--created-after={value}")
            assert done.exit_code == 2
            assert "--created-after" in done.err
            assert repr(value) in done.err

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

    def test_a_job_is_shown_with_what_was_resolved(self, tunery: Tunery, waiting_job: Job) -> None:
        out = tunery("jobs", "get", waiting_job.id).out
        assert "validating files" in out
        assert "r 16, alpha 32, dropout 0," in out
        assert "bits 4, type nf4" in out

    @pytest.mark.parametrize(
        ("value", "text"), [(True, "true"), (False, "false"), (2e-4, "0.0002"), (["q_proj", "v_proj"], "q_proj+v_proj")]
    )
    def test_values_are_written_as_the_options_take_them(self, value: Any, text: str) -> None:
        assert item_text(value) == text

    def test_a_failed_one_with_its_reason(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            job = make_failed_job(session, storage, project)
        assert "invalid_training_file: The job failed" in tunery("jobs", "get", job.id).out

    def test_an_unknown_job_is_exit_code_3_everywhere(self, tunery: Tunery) -> None:
        for command in ("get", "watch", "cancel", "pause", "resume", "events"):
            done = tunery("jobs", command, "ftjob-none")
            assert done.exit_code == 3
            assert "ftjob-none" in done.err

    def test_what_can_be_no_id_never_becomes_another_path(self, tunery: Tunery) -> None:
        for odd in ("../models", "a/b", "a?b=c", "a%2Fb", "ключ", ""):
            assert tunery("jobs", "get", odd).exit_code == 3

    def test_events_are_listed_oldest_first(self, tunery: Tunery, trained_job: Job) -> None:
        events = tunery("jobs", "events", trained_job.id, "--json").json
        assert events[0]["message"].startswith("Created fine-tuning job")
        assert events[-1]["message"] == "The job has successfully completed"
        assert "Step 2/4" in tunery("jobs", "events", trained_job.id).out

    def test_all_events_are_shown_and_with_a_limit_a_note_says_that_there_are_more(
        self, tunery: Tunery, sessions: Sessions, trained_job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with transaction(sessions) as session:
            job = session.get_one(Job, trained_job.id)
            for number in range(150):
                job.event_seq += 1
                append_event(session, job, f"event {number}")
        monkeypatch.setattr("app.cli.commands.jobs.jobs.EVENTS_PER_PAGE", 60)
        done = tunery("jobs", "events", trained_job.id)
        lines = done.out.splitlines()
        assert "Created fine-tuning job" in lines[1]
        assert lines[-1].endswith("event 149")
        assert "Shows the newest" not in done.err
        done = tunery("jobs", "events", trained_job.id, "--limit", 100)
        assert len(done.out.splitlines()) == 1 + 100
        assert "Shows the newest 100 events" in done.err
        everything = len(lines) - 1
        done = tunery("jobs", "events", trained_job.id, "--limit", everything, "--json")
        assert (len(done.json), done.err) == (everything, "")


class TestSet:
    def test_changes_what_is_given_and_leaves_the_rest(self, tunery: Tunery, waiting_job: Job) -> None:
        done = tunery("jobs", "set", waiting_job.id, "--priority", 7, "--metadata", "team=a", "--metadata", "n=1")
        assert (done.exit_code, done.out.strip()) == (0, waiting_job.id)
        assert "priority 7, metadata: n 1, team a" in done.err
        job = tunery("jobs", "set", waiting_job.id, "--priority", -1, "--json").json
        assert (job["priority"], job["metadata"]) == (-1, {"team": "a", "n": "1"})
        job = tunery("jobs", "set", waiting_job.id, "--no-metadata", "--json").json
        assert (job["priority"], job["metadata"]) == (-1, None)

    @pytest.mark.parametrize("options", [[], ["--metadata", "a=b", "--no-metadata"], ["--metadata", "a"]], ids=str)
    def test_no_change_is_a_usage_error(self, tunery: Tunery, waiting_job: Job, options: list[str]) -> None:
        assert tunery("jobs", "set", waiting_job.id, *options).exit_code == 2

    def test_the_priority_of_a_finished_job_is_refused_in_the_servers_words(
        self, tunery: Tunery, trained_job: Job
    ) -> None:
        done = tunery("jobs", "set", trained_job.id, "--priority", 1)
        assert (done.exit_code, "only a job that has not ended" in done.err) == (2, True)


class TestCancel:
    def test_a_waiting_job_ends(self, tunery: Tunery, waiting_job: Job) -> None:
        assert "cancelled" in tunery("jobs", "cancel", waiting_job.id).out
        assert tunery("jobs", "get", waiting_job.id, "--json").json["status"] == "cancelled"

    def test_a_finished_one_is_left_as_it_is(self, tunery: Tunery, trained_job: Job) -> None:
        assert tunery("jobs", "cancel", trained_job.id).exit_code == 2


class TestPause:
    def test_a_waiting_job_pauses_and_resumes(self, tunery: Tunery, sessions: Sessions, waiting_job: Job) -> None:
        with transaction(sessions) as session:
            validate_job(session)
        assert tunery("jobs", "pause", waiting_job.id).out == f"{waiting_job.id}  paused\n"
        assert tunery("jobs", "get", waiting_job.id, "--json").json["status"] == "paused"
        assert tunery("jobs", "resume", waiting_job.id, "--json").json["status"] == "queued"

    def test_a_job_in_another_state_is_a_usage_error_that_names_it(self, tunery: Tunery, trained_job: Job) -> None:
        for verb in ("pause", "resume"):
            done = tunery("jobs", verb, trained_job.id)
            assert (done.exit_code, "succeeded" in done.err) == (2, True)


class TestWatch:
    def test_a_finished_job_is_shown_at_once(self, tunery: Tunery, trained_job: Job) -> None:
        done = tunery("jobs", "watch", trained_job.id)
        assert done.exit_code == 0, done.err
        assert "The job has successfully completed" in done.out
        assert f"tunery adapters download {trained_job.id}" in done.err

    def test_for_a_job_with_many_events_a_note_says_that_earlier_ones_are_not_shown(
        self, tunery: Tunery, trained_job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.cli.commands.jobs.progress.MAX_EARLIER_EVENTS", 2)
        done = tunery("jobs", "watch", trained_job.id)
        assert "Created fine-tuning job" not in done.out
        assert f"`tunery jobs events {trained_job.id}` shows all" in done.err

    def test_json_has_no_next_steps(self, tunery: Tunery, trained_job: Job) -> None:
        assert tunery("jobs", "watch", trained_job.id, "--json").err == ""

    def test_a_job_is_followed_to_its_end(
        self, tunery: Tunery, sessions: Sessions, waiting_job: Job, background: Callable[..., None]
    ) -> None:
        background(work, sessions)
        done = tunery("jobs", "watch", waiting_job.id)
        assert done.exit_code == 1
        assert "failed: step 3/3 · epoch 1.0 · loss 0.333" in done.out
        assert done.out.count("Created fine-tuning job") == 1
        assert "failed (out_of_memory): did not fit" in done.err

    def test_json_has_each_event_once_and_the_job_last(
        self, tunery: Tunery, sessions: Sessions, waiting_job: Job, background: Callable[..., None]
    ) -> None:
        background(work, sessions)
        done = tunery("jobs", "watch", waiting_job.id, "--json")
        lines: list[dict[str, Any]] = [json.loads(line) for line in done.out.strip().split("\n")]
        ids = [line["id"] for line in lines[:-1]]
        assert len(ids) == len(set(ids))
        assert [line["data"]["step"] for line in lines if line.get("type") == "metrics"] == [1, 2, 3]
        assert (lines[-1]["id"], lines[-1]["status"]) == (waiting_job.id, "failed")

    def test_a_cancelled_job_is_exit_code_1(self, tunery: Tunery, sessions: Sessions, waiting_job: Job) -> None:
        with transaction(sessions) as session:
            jobs.cancel(session, waiting_job.project_id, waiting_job.id)
        assert tunery("jobs", "watch", waiting_job.id).exit_code == 1

    def test_ctrl_c_does_not_affect_the_job_and_prints_how_to_continue(
        self, tunery: Tunery, waiting_job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(_seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("app.cli.commands.jobs.progress.time.sleep", interrupt)
        done = tunery("jobs", "watch", waiting_job.id)
        assert done.exit_code == 130
        assert f"tunery jobs watch {waiting_job.id}" in done.err
        monkeypatch.undo()
        assert waiting_job.state == "validating_files"

    def test_create_can_stay_until_the_end(
        self, tunery: Tunery, sessions: Sessions, dataset: Path, background: Callable[..., None]
    ) -> None:
        background(work, sessions)
        done = tunery("jobs", "create", "--model", "tiny", "--training-file", dataset, "--watch", "--json")
        assert done.exit_code == 1
        assert json.loads(done.out.strip().split("\n")[-1])["status"] == "failed"


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
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with transaction(sessions) as session:
            if claims.has_claimable_job(session, "validate"):
                break
        time.sleep(0.01)
    with transaction(sessions) as session:
        validate_job(session)
    with transaction(sessions) as session:
        job = start_job(session)
    for step in (1, 2, 3):
        with transaction(sessions) as session:
            append_step_event(session, job, step, 3, loss=1.0 / step)
        time.sleep(0.05)
    with transaction(sessions) as session:
        claims.finish_held_attempt(session, lease_of(job), Reason.OUT_OF_MEMORY, "did not fit")


class TestPlan:
    def test_it_prints_the_requirements_and_creates_no_job(
        self, tunery: Tunery, dataset: Path, sessions: Sessions
    ) -> None:
        about = {"device": "NVIDIA L4", "kind": "cuda", "memory_bytes": 24 << 30}
        with transaction(sessions) as session:
            workers.heartbeat(session, "gpu0@a#1", "gpu", "host", 1, about)
        done = tunery("jobs", "plan", "--model", "tiny", "--training-file", dataset, "--n-epochs", "2")
        assert done.exit_code == 0, done.err
        assert "Fits NVIDIA L4" in done.out
        assert "DEVICE" in done.out
        assert tunery("jobs", "list", "--json").json == []
        assert tunery("files", "list", "--json").json == []

    def test_it_warns_of_a_missing_validation_file_and_of_the_training_file_in_its_place(
        self, tunery: Tunery, dataset: Path
    ) -> None:
        arguments = ["--model", "tiny", "--training-file", dataset]
        assert "There is no validation file" in tunery("jobs", "plan", *arguments).out
        arguments += ["--validation-file", dataset]
        assert "the same content" in tunery("jobs", "plan", *arguments).out
        assert "Warning: The validation file has the same content" in tunery("jobs", "create", *arguments).err

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

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ServiceUnreachable("The connection broke off.")])
    def test_after_ctrl_c_or_a_lost_connection_nothing_stays(
        self, tunery: Tunery, dataset: Path, monkeypatch: pytest.MonkeyPatch, error: Any
    ) -> None:
        ask = Client._request_json

        def broken(client: Client, method: str, asked: str, **request: Any) -> Any:
            if asked.endswith("/plan"):
                raise error
            return ask(client, method, asked, **request)

        with monkeypatch.context() as patch:
            patch.setattr(Client, "_request_json", broken)
            assert tunery("jobs", "plan", "--model", "tiny", "--training-file", dataset).exit_code in (1, 130)
        assert tunery("files", "list", "--json").json == []

    def test_without_a_worker_with_enough_memory_it_exits_with_1(
        self, tunery: Tunery, dataset: Path, sessions: Sessions
    ) -> None:
        about = {"device": "NVIDIA Toy", "kind": "cuda", "memory_bytes": 1 << 20}
        with transaction(sessions) as session:
            workers.heartbeat(session, "gpu0@a#1", "gpu", "host", 1, about)
        done = tunery("jobs", "plan", "--model", "tiny", "--training-file", dataset)
        assert done.exit_code == 1
        assert "No device has enough memory" in done.out
