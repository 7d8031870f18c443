from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.cli.client.http import Client
from app.cli.errors import ServiceUnreachable
from app.db.engine import Sessions, transaction
from app.db.tables import Project, Upload
from app.storage import LocalStorage
from tests.commands.conftest import Tunery
from tests.factories import make_file
from tests.receiver import receiving
from tests.sentences import Reviewed
from tests.serving import LiveServer


class TestOneFile:
    @pytest.fixture
    def file_id(self, tunery: Tunery, dataset: Path) -> str:
        return tunery("files", "upload", dataset).out.strip()

    def test_a_file_is_downloaded_under_its_name_and_overwrites_nothing(
        self, tunery: Tunery, file_id: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        assert tunery("files", "download", file_id).out == "train.jsonl\n"
        assert (here / "train.jsonl").read_bytes() == dataset.read_bytes()
        assert tunery("files", "download", file_id).exit_code == 2
        assert [path.name for path in here.iterdir()] == ["train.jsonl"]

    def test_an_interrupted_download_is_resumed_and_verified(
        self, tunery: Tunery, file_id: str, dataset: Path, tmp_path: Path
    ) -> None:
        to, part = tmp_path / "got", tmp_path / f".got.{file_id}.part"
        part.write_bytes(dataset.read_bytes()[:100])
        assert tunery("files", "download", file_id, "-o", to).exit_code == 0
        assert to.read_bytes() == dataset.read_bytes()
        part.write_bytes(b"x" * 100)
        wrong = tunery("files", "download", file_id, "-o", tmp_path / "other" / "got")
        assert wrong.exit_code == 0  # another place, another part
        to.unlink()
        assert "SHA-256" in tunery("files", "download", file_id, "-o", to).err
        assert not to.exists()


class TestUpload:
    def test_a_name_that_is_not_ascii_arrives(self, tunery: Tunery, dataset: Path) -> None:
        other = dataset.rename(dataset.with_name("données «1».jsonl"))
        assert tunery("files", "upload", other, "--json").json["filename"] == other.name

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_an_unreadable_file_is_a_usage_error(self, tunery: Tunery, dataset: Path) -> None:
        dataset.chmod(0)
        assert tunery("files", "upload", dataset).exit_code == 2


class TestLargeFiles:
    @pytest.fixture(autouse=True)
    def streamed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.cli.client.transfers.MIN_RESUMABLE_BYTES", 100)
        monkeypatch.setattr("app.cli.client.transfers.ATTEMPT_PAUSE_SECONDS", 0.0)

    def test_an_upload_is_resumed_after_a_lost_connection(
        self, tunery: Tunery, dataset: Path, monkeypatch: pytest.MonkeyPatch, sessions: Sessions
    ) -> None:
        put_file, starts = Client.put_file, []

        def break_once(self: Client, url: str, file: Any, first_byte: int, size: int) -> Any:
            starts.append(first_byte)
            if first_byte == 0:
                headers = {"Content-Range": f"bytes 0-299/{size}"}
                self._request_json("PUT", url, content=file.read(300), headers=headers)
                raise ServiceUnreachable("cut")
            return put_file(self, url, file, first_byte, size)

        monkeypatch.setattr(Client, "put_file", break_once)
        file = tunery("files", "upload", dataset, "--json").json
        assert starts == [0, 300]
        assert file["sha256"] == hashlib.sha256(dataset.read_bytes()).hexdigest()
        with transaction(sessions) as session:
            assert session.scalars(select(Upload.status)).all() == ["completed"]

    def test_the_error_names_the_command_that_resumes_the_upload(
        self, tunery: Tunery, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def break_always(*_: object) -> None:
            raise ServiceUnreachable("cut")

        with monkeypatch.context() as patch:
            patch.setattr(Client, "put_file", break_always)
            done = tunery("files", "upload", dataset)
        assert done.exit_code == 1
        upload_id = re.findall(r"--resume (upload_\w+)", done.err)[0]
        file = tunery("files", "upload", dataset, "--resume", upload_id, "--json").json
        assert file["bytes"] == dataset.stat().st_size
        again = tunery("files", "upload", dataset, "--resume", upload_id, "--json").json
        assert again["id"] == file["id"]


class TestList:
    def test_a_pipe_gets_plain_aligned_text(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            file = make_file(session, storage, project, filename="[bold]x[/bold].jsonl")
        head, line = tunery("files", "list").out.strip().split("\n")
        assert head.split() == ["ID", "FILENAME", "SIZE", "PURPOSE", "CREATED"]
        assert line.split()[:2] == [file.id, "[bold]x[/bold].jsonl"]
        assert "\x1b" not in line

    def test_no_files_are_a_note_for_people_and_an_empty_list_for_scripts(self, tunery: Tunery) -> None:
        done = tunery("files", "list")
        assert (done.exit_code, done.out, len(done.err.splitlines())) == (0, "", 1)
        assert tunery("files", "list", "--json").json == []


FULL_ID = "ftjob-0123456789abcdef01234567"


def test_a_service_that_does_not_answer_as_tunery_is_an_error(
    tunery: Tunery, live_server: LiveServer, reviewed: Reviewed
) -> None:
    with receiving() as page:
        page.answers = [(200, {"Content-Type": "text/html"}, b"<html>")]
        pages_url = f"http://127.0.0.1:{page.port}"
        for url, key, exit_code in (
            ("http://127.0.0.1:1", "tnry_any", 1),
            (pages_url, "tnry_any", 1),
            (live_server.root, "tnry_wrong", 4),
            (live_server.root, "", 4),
        ):
            done = tunery("jobs", "cancel", FULL_ID, env={"TUNERY_BASE_URL": url, "TUNERY_API_KEY": key})
            assert (done.exit_code, done.out, "tnry_" in done.err) == (exit_code, "", False)
            reviewed(done.err.replace(pages_url, "URL"))


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(
    tunery: Tunery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert tunery("files", "list").exit_code == 0


class TestTables:
    """`files upload` of a table, and of rows that are held out."""

    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        rows = "".join(f"ticket {n},{'card' if n % 3 else 'pin'},note\n" for n in range(30))
        path = tmp_path / "bank.csv"
        path.write_text(f"text,label,note\n{rows}")
        return path

    def test_a_table_becomes_a_training_file_and_a_held_out_file(
        self, tunery: Tunery, table: Path, reviewed: Reviewed
    ) -> None:
        done = tunery("files", "upload", table, "--held-out-percent", 10, "--seed", 3)
        training = tunery("files", "get", done.out.strip(), "--json").json
        assert training["preparation"]["columns"] == "text,label"
        assert (training["line_count"], training["preparation"]["seed"]) == (27, 3)
        assert training["held_out_file_id"] in done.err
        reviewed(done.err.replace(training["held_out_file_id"], "FILE"))

    def test_a_preview_uploads_nothing(self, tunery: Tunery, table: Path, dataset: Path) -> None:
        assert "30 rows." in tunery("files", "upload", table, "--preview").out
        found = tunery("files", "upload", dataset, "--held-out-percent", 25, "--preview", "--json").json
        assert (found["preparation"]["columns"], found["prepared"]["held_out_rows"]) == (
            None,
            found["prepared"]["rows"] // 4,
        )
        assert tunery("files", "list", "--json").json == []

    def test_the_first_row_may_be_an_example(self, tunery: Tunery, table: Path) -> None:
        options = ("--columns", "#1,#3", "--json")
        assert tunery("files", "upload", table, *options).json["line_count"] == 31

    @pytest.mark.parametrize(
        ("content", "options", "said"),
        [
            ("x,y,z\n1,2,3\n", (), '"x", "y", "z"'),
            ("text,label\n1,2,3\n", (), "Row 2"),
            ("text,label\n1,2\n", ("--columns", "text,answer"), 'no "answer"'),
            ("text,label\n1,2\n", ("--columns", "text"), "two or three"),
            ("text,label\n1,2\n", ("--held-out-percent", "10"), "two different inputs"),
            ("text,label\n1,2\n", ("--resume", "upload_1"), "again"),
        ],
    )
    def test_what_the_server_would_refuse_is_a_usage_error(
        self, tunery: Tunery, table: Path, content: str, options: tuple[str, ...], said: str
    ) -> None:
        table.write_text(content)
        done = tunery("files", "upload", table, *options)
        assert (done.exit_code, said in done.err) == (2, True), done.err
