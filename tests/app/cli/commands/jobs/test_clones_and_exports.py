from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from app.db.engine import Sessions, transaction
from app.db.jobs import exports
from app.db.jobs.leases import Lease
from app.db.tables import Export, Job, Project
from app.domain.artifacts.exports import ExportErrorCode
from app.storage import LocalStorage
from tests.app.cli.conftest import Tunery
from tests.deadline import until
from tests.factories import chat_lines, fail_attempt, make_file

OWNER = "export.cpu0@a#1"


class TestClone:
    def test_prints_the_id_of_a_job_like_the_other_but_for_what_was_given(
        self, tunery: Tunery, trained_job: Job, tmp_path: Path
    ) -> None:
        data = tmp_path / "more.jsonl"
        data.write_bytes(chat_lines(20))
        done = tunery("jobs", "clone", trained_job.id, "--lora-r", 8, "--set", "warmup_ratio=0.2",
                      "--training-file", data, "--metadata", "try=2")  # fmt: skip
        assert done.exit_code == 0, done.err
        was = tunery("jobs", "get", trained_job.id, "--json").json
        job = tunery("jobs", "get", done.out.strip(), "--json").json
        assert (job["cloned_from"], job["seed"], job["metadata"]) == (trained_job.id, was["seed"], {"try": "2"})
        assert job["lora"] == was["lora"] | {"r": 8}
        assert job["method"]["supervised"]["hyperparameters"]["warmup_ratio"] == 0.2
        assert job["training_file"] != was["training_file"]

    def test_of_an_urgent_job_is_not_urgent_on_request(
        self, tunery: Tunery, sessions: Sessions, trained_job: Job
    ) -> None:
        with transaction(sessions) as session:
            session.get_one(Job, trained_job.id).urgent = True
        refused = tunery("jobs", "clone", trained_job.id)
        assert "urgent: the jobs of this project may not precede" in refused.err
        clone = tunery("jobs", "clone", trained_job.id, "--not-urgent").out.strip()
        assert tunery("jobs", "get", clone, "--json").json["urgent"] is False

    def test_what_the_server_refuses_is_one_sentence(self, tunery: Tunery, trained_job: Job) -> None:
        done = tunery("jobs", "clone", trained_job.id, "--set", "lora.r=999")
        assert (done.exit_code, "lora.r: " in done.err) == (2, True)


class TestDiff:
    def test_prints_the_differences_and_the_equal_sections(self, tunery: Tunery, trained_job: Job) -> None:
        clone = tunery("jobs", "clone", trained_job.id, "--lora-r", 8).out.strip()
        done = tunery("jobs", "diff", trained_job.id, clone)
        assert done.exit_code == 0, done.err
        lines = [line.split() for line in done.out.splitlines()]
        assert lines[0][-2:] == ["LEFT", "RIGHT"]
        assert f"left: {trained_job.id}, right: {clone}" in done.err
        assert ["config", "lora.r", "16", "8"] in lines
        assert not any("n_epochs" in line for line in done.out.splitlines())
        assert "No differences in: data" in done.err
        assert "hyperparameters.n_epochs" in tunery("jobs", "diff", trained_job.id, clone, "--all").out
        assert tunery("jobs", "diff", trained_job.id, clone, "--json").json["config"]["differences"] >= 1


class TestExport:
    @pytest.fixture
    def worker(self, sessions: Sessions, storage: LocalStorage, project: Project) -> threading.Thread:
        """Makes the first export that is asked for."""

        def work() -> None:
            until(lambda: self.make(sessions, storage, project), "an export to be asked for")

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def make(self, sessions: Sessions, storage: LocalStorage, project: Project) -> bool:
        with transaction(sessions) as session:
            export = exports.claim(session, OWNER, 60)
            if export is None:
                return False
            job = session.get_one(Job, export.job_id)
            made = [
                make_file(session, storage, project, content, "fine-tune-results", name, job, line_count=None)
                for name, content in (("config.json", b"{}"), ("empty", b""), ("model.safetensors", b"x" * 99_000))
            ]
            ids = [file.id for file in made]
            exports.succeed(session, Lease(export.id, export.attempt, OWNER), {"files": {}}, ids, 99_002)
        return True

    @pytest.mark.parametrize(
        "options", ["--output", "--type gguf --quantization Q8_0 -o"], ids=["of the card", "of the serving page"]
    )
    def test_waits_and_downloads_every_byte_verified(
        self, tunery: Tunery, trained_job: Job, worker: threading.Thread, tmp_path: Path, options: str
    ) -> None:
        done = tunery("jobs", "export", trained_job.id, *options.split(), tmp_path / "merged")
        worker.join()
        assert done.exit_code == 0, done.err
        assert done.out.strip() == str(tmp_path / "merged")
        found = {path.name: path.stat().st_size for path in (tmp_path / "merged").iterdir()}
        assert found == {"config.json": 2, "empty": 0, "model.safetensors": 99_000}
        (listed,) = tunery("jobs", "exports", trained_job.id, "--json").json
        assert listed["status"] == "succeeded"
        assert "succeeded" in tunery("jobs", "exports", trained_job.id).out

    def test_an_unknown_type_is_answered_with_those_there_are(self, tunery: Tunery, trained_job: Job) -> None:
        done = tunery("jobs", "export", trained_job.id, "--type", "onnx")
        assert (done.exit_code, "there are: merged, gguf, gguf_adapter" in done.err) == (2, True)

    def test_a_gguf_export_names_its_weights_and_that_no_worker_makes_it(
        self, tunery: Tunery, trained_job: Job
    ) -> None:
        tunery("jobs", "export", trained_job.id, "--type", "gguf", "--quantization", "Q4_K_M", "--detach")
        (listed,) = tunery("jobs", "exports", trained_job.id, "--json").json
        assert (listed["type"], listed["quantization"], listed["phase"]) == ("gguf", "Q4_K_M", "waiting_for_worker")
        table = " ".join(tunery("jobs", "exports", trained_job.id).out.split())
        assert "gguf Q4_K_M" in table
        assert "no running worker makes GGUF files" in table

    def test_detached_it_prints_the_id(self, tunery: Tunery, trained_job: Job) -> None:
        export_id = tunery("jobs", "export", trained_job.id, "--detach").out.strip()
        assert tunery("jobs", "exports", trained_job.id, "--json").json[0]["id"] == export_id

    def test_is_deleted_by_its_id(self, tunery: Tunery, trained_job: Job) -> None:
        export_id = tunery("jobs", "export", trained_job.id, "--detach").out.strip()
        done = tunery("jobs", "delete-export", trained_job.id, export_id)
        assert (done.exit_code, done.out.strip()) == (0, f"{export_id} deleted")
        assert tunery("jobs", "exports", trained_job.id, "--json").json == []
        for odd in (export_id, "a/b", ""):
            assert tunery("jobs", "delete-export", trained_job.id, odd).exit_code == 3

    def test_a_failed_one_is_an_error_with_its_sentence(
        self, tunery: Tunery, trained_job: Job, sessions: Sessions
    ) -> None:
        def fail() -> bool:
            with transaction(sessions) as session:
                export = exports.claim(session, OWNER, 60)
                if export is not None:
                    fail_attempt(
                        session, Export, Lease(export.id, 1, OWNER), ExportErrorCode.CANNOT_MERGE, "No room for it."
                    )
                return export is not None

        thread = threading.Thread(target=lambda: until(fail, "an export to be asked for"))
        thread.start()
        done = tunery("jobs", "export", trained_job.id)
        thread.join()
        assert (done.exit_code, "cannot_merge): No room for it." in done.err) == (1, True)


@pytest.mark.usefixtures("base_model")
class TestValidate:
    def test_shows_rows_with_the_trained_tokens_marked(self, tunery: Tunery, tmp_path: Path) -> None:
        data = tmp_path / "train.jsonl"
        data.write_bytes(chat_lines(12))
        done = tunery("files", "validate", data, "--model", "tiny", "--rows", 1, "--validation-file", data)
        assert done.exit_code == 0, done.err
        assert done.out.startswith(
            "Valid: this file can be used for training, with 1 warning.\n\nWarnings:\n"
            "- Rows of the validation file that are also in the training file: 12 (lines 1, 2, 3, 4, 5, 6, 7, 8, 9, "
            "10, …) of 12 different rows. The validation loss of memorized rows is too low; use a file of other "
            "rows.\n\n"
        )
        assert "<|im_start|>assistant\n⟦it is 0<|im_end|>⟧" in done.out
        assert "12 rows" in done.out  # that stand in the validation file, too
        assert "400 per epoch, 98 of them trained" in done.out
        assert tunery("files", "list", "--json").json == []

    @pytest.mark.parametrize("wrong", [("--model", "tony"), ("--model", "tiny", "--validation-file", "none.jsonl")])
    def test_nothing_is_uploaded_for_what_cannot_be(
        self, tunery: Tunery, tmp_path: Path, wrong: tuple[str, ...]
    ) -> None:
        data = tmp_path / "train.jsonl"
        data.write_bytes(chat_lines(12))
        assert tunery("files", "validate", data, *wrong).exit_code in (2, 3)
        assert tunery("files", "list", "--json").json == []

    def test_a_file_that_no_job_takes_ends_with_one_and_names_the_lines(self, tunery: Tunery, tmp_path: Path) -> None:
        data = tmp_path / "train.jsonl"
        data.write_bytes(chat_lines(10) + json.dumps({"messages": []}).encode() + b"\n")
        file_id = tunery("files", "upload", data).out.strip()
        done = tunery("files", "validate", file_id, "--model", "tiny")
        assert done.exit_code == 1
        assert any(line.split()[:2] == ["11", "invalid_messages"] for line in done.out.splitlines())
        result = tunery("files", "validate", file_id, "--model", "tiny", "--json")
        assert json.loads(result.out)["findings"]["count"] == 1
