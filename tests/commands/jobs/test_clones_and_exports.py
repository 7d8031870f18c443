from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest

from app.db.engine import Sessions, transaction
from app.db.jobs import exports
from app.db.jobs.leases import Lease
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.commands.conftest import Tunery
from tests.deadline import until
from tests.factories import chat_lines, make_file
from tests.sentences import Reviewed

OWNER = "export.cpu0@a#1"


class TestClone:
    def test_a_clone_differs_by_what_was_given(self, tunery: Tunery, trained_job: Job, tmp_path: Path) -> None:
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

    def test_a_clone_of_an_urgent_job_is_not_urgent_on_request(
        self, tunery: Tunery, sessions: Sessions, trained_job: Job
    ) -> None:
        with transaction(sessions) as session:
            session.get_one(Job, trained_job.id).urgent = True
        assert tunery("jobs", "clone", trained_job.id).exit_code == 4
        clone = tunery("jobs", "clone", trained_job.id, "--not-urgent").out.strip()
        assert tunery("jobs", "get", clone, "--json").json["urgent"] is False


class TestDiff:
    def test_a_diff_has_the_differences_and_the_equal_sections(self, tunery: Tunery, trained_job: Job) -> None:
        clone = tunery("jobs", "clone", trained_job.id, "--lora-r", 8).out.strip()
        done = tunery("jobs", "diff", trained_job.id, clone)
        assert done.exit_code == 0, done.err
        lines = [line.split() for line in done.out.splitlines()]
        assert lines[0][-2:] == ["LEFT", "RIGHT"]
        assert ["config", "lora.r", "16", "8"] in lines
        assert not any("n_epochs" in line for line in done.out.splitlines())
        assert done.err.rstrip().endswith(": data, environment.")
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

    def test_an_export_is_awaited_and_downloaded(
        self, tunery: Tunery, trained_job: Job, worker: threading.Thread, tmp_path: Path
    ) -> None:
        done = tunery("jobs", "export", trained_job.id, "--output", tmp_path / "merged")
        worker.join()
        assert done.exit_code == 0, done.err
        assert done.out.strip() == str(tmp_path / "merged")
        found = {path.name: path.stat().st_size for path in (tmp_path / "merged").iterdir()}
        assert found == {"config.json": 2, "empty": 0, "model.safetensors": 99_000}
        (listed,) = tunery("jobs", "exports", trained_job.id, "--json").json
        assert listed["status"] == "succeeded"
        assert "succeeded" in tunery("jobs", "exports", trained_job.id).out

    def test_a_gguf_export_names_its_weights_and_that_no_worker_makes_it(
        self, tunery: Tunery, trained_job: Job
    ) -> None:
        tunery("jobs", "export", trained_job.id, "--type", "gguf", "--quantization", "Q4_K_M", "--detach")
        (listed,) = tunery("jobs", "exports", trained_job.id, "--json").json
        assert (listed["type"], listed["quantization"], listed["phase"]) == ("gguf", "Q4_K_M", "waiting_for_worker")
        assert "gguf Q4_K_M" in tunery("jobs", "exports", trained_job.id).out


@pytest.mark.usefixtures("base_model")
class TestValidate:
    def test_a_report_has_the_rows_with_the_trained_tokens_marked(
        self, tunery: Tunery, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        data = tmp_path / "train.jsonl"
        data.write_bytes(chat_lines(12))
        done = tunery("files", "validate", data, "--model", "tiny", "--rows", 1, "--validation-file", data)
        assert done.exit_code == 0, done.err
        reviewed(re.sub(r"file-[0-9a-f]{24}", "FILE", done.out))
        assert tunery("files", "list", "--json").json == []

    def test_an_invalid_file_exits_with_1_and_names_the_lines(self, tunery: Tunery, tmp_path: Path) -> None:
        data = tmp_path / "train.jsonl"
        data.write_bytes(chat_lines(10) + json.dumps({"messages": []}).encode() + b"\n")
        file_id = tunery("files", "upload", data).out.strip()
        done = tunery("files", "validate", file_id, "--model", "tiny")
        assert done.exit_code == 1
        assert any(line.split()[:2] == ["11", "invalid_messages"] for line in done.out.splitlines())
        result = tunery("files", "validate", file_id, "--model", "tiny", "--json")
        assert json.loads(result.out)["findings"]["count"] == 1
