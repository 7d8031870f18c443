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
from app.db import files
from app.db.engine import Sessions, transaction
from app.db.tables import Project, Upload
from app.storage import LocalStorage
from tests.app.cli.conftest import Tunery
from tests.factories import chat_lines, make_file
from tests.serving import LiveServer


class TestOneFile:
    @pytest.fixture
    def file_id(self, tunery: Tunery, dataset: Path) -> str:
        return tunery("files", "upload", dataset).out.strip()

    def test_is_shown(self, tunery: Tunery, file_id: str, dataset: Path) -> None:
        shown = tunery("files", "get", file_id).out
        assert "train.jsonl" in shown
        assert hashlib.sha256(dataset.read_bytes()).hexdigest() in shown
        assert tunery("files", "get", file_id, "--json").json["id"] == file_id

    def test_comes_here_under_its_own_name_and_nothing_is_overwritten(
        self, tunery: Tunery, file_id: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        assert tunery("files", "download", file_id).out == "train.jsonl\n"
        assert (here / "train.jsonl").read_bytes() == dataset.read_bytes()
        again = tunery("files", "download", file_id)
        assert (again.exit_code, "already exists" in again.err) == (2, True)
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

    def test_is_deleted_with_others(self, tunery: Tunery, file_id: str, dataset: Path) -> None:
        other = tunery("files", "upload", dataset).out.strip()
        assert tunery("files", "delete", file_id, other).out == f"{file_id} deleted\n{other} deleted\n"
        assert tunery("files", "list", "--json").json == []
        assert tunery("files", "delete", file_id).exit_code == 3

    @pytest.mark.parametrize("verb", ["get", "download", "delete"])
    def test_that_is_none_is_not_found(self, tunery: Tunery, verb: str) -> None:
        for file_id in ("file-none", "../models"):
            assert tunery("files", verb, file_id).exit_code == 3


class TestUpload:
    def test_the_id_is_all_that_standard_output_has(
        self, tunery: Tunery, dataset: Path, sessions: Sessions, project: Project, storage: LocalStorage
    ) -> None:
        done = tunery("files", "upload", dataset)
        assert done.exit_code == 0, done.err
        with transaction(sessions) as session:
            file = files.get(session, project.id, done.out.strip())
        assert file is not None
        assert (file.filename, file.purpose, file.bytes) == ("train.jsonl", "fine-tune", dataset.stat().st_size)
        with storage.open(file.storage_key) as stored:
            assert stored.read() == dataset.read_bytes()

    def test_json_is_the_whole_object(self, tunery: Tunery, dataset: Path) -> None:
        file = tunery("files", "upload", dataset, "--json").json
        assert (file["object"], file["bytes"]) == ("file", dataset.stat().st_size)

    def test_a_name_that_is_not_ascii_arrives(self, tunery: Tunery, dataset: Path) -> None:
        other = dataset.rename(dataset.with_name("données «1».jsonl"))
        assert tunery("files", "upload", other, "--json").json["filename"] == other.name

    def test_what_is_not_jsonl_is_refused_with_the_line(self, tunery: Tunery, tmp_path: Path) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_bytes(chat_lines(2) + b"nonsense\n")
        done = tunery("files", "upload", path)
        assert done.exit_code == 2
        assert "ine 3" in done.err
        assert done.out == ""

    @pytest.mark.parametrize("name", ["missing.jsonl", ""])
    def test_what_is_not_a_file_is_a_usage_error(self, tunery: Tunery, tmp_path: Path, name: str) -> None:
        assert tunery("files", "upload", tmp_path / name).exit_code == 2

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_an_unreadable_file_is_a_usage_error(self, tunery: Tunery, dataset: Path) -> None:
        dataset.chmod(0)
        assert tunery("files", "upload", dataset).exit_code == 2


class TestLargeFiles:
    @pytest.fixture(autouse=True)
    def streamed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.cli.client.transfers.MIN_RESUMABLE_BYTES", 100)
        monkeypatch.setattr("app.cli.client.transfers.ATTEMPT_PAUSE_SECONDS", 0.0)

    def test_go_up_as_a_stream(self, tunery: Tunery, dataset: Path, sessions: Sessions) -> None:
        file = tunery("files", "upload", dataset, "--json").json
        assert file["sha256"] == hashlib.sha256(dataset.read_bytes()).hexdigest()
        with transaction(sessions) as session:
            assert session.scalars(select(Upload.status)).all() == ["completed"]

    def test_uploads_are_resumed_after_a_lost_connection(
        self, tunery: Tunery, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_file, starts = Client.put_file, []

        def break_once(self: Client, url: str, path: Path, first_byte: int, size: int, on_bytes: Any) -> Any:
            starts.append(first_byte)
            if first_byte == 0:
                with path.open("rb") as file:
                    headers = {"Content-Range": f"bytes 0-299/{size}"}
                    self._request_json("PUT", url, content=file.read(300), headers=headers)
                raise ServiceUnreachable("cut")
            return put_file(self, url, path, first_byte, size, on_bytes)

        monkeypatch.setattr(Client, "put_file", break_once)
        file = tunery("files", "upload", dataset, "--json").json
        assert starts == [0, 300]
        assert file["sha256"] == hashlib.sha256(dataset.read_bytes()).hexdigest()

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

    def test_are_not_mixed_up_with_another_upload(self, tunery: Tunery, dataset: Path, tmp_path: Path) -> None:
        done = tunery("files", "upload", dataset, "--resume", "upload_unknown")
        assert done.exit_code == 3
        assert "upload_unknown" in done.err

    def test_that_are_no_data_sets_are_refused_with_the_line(self, tunery: Tunery, tmp_path: Path) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_bytes(chat_lines(2) + b"nonsense\n")
        done = tunery("files", "upload", path)
        assert done.exit_code == 2
        assert "ine 3" in done.err


class TestList:
    def test_the_newest_is_first(
        self, tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            made = [make_file(session, storage, project, filename=f"{number}.jsonl").id for number in range(3)]
        assert [file["id"] for file in tunery("files", "list", "--json").json] == made[::-1]
        assert [file["id"] for file in tunery("files", "list", "--limit", 2, "--json").json] == made[:0:-1]

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
        assert (done.exit_code, done.out) == (0, "")
        assert "No files" in done.err
        assert tunery("files", "list", "--json").json == []


class TestWithoutAService:
    def test_without_a_server_the_error_names_how_to_start_one(self, bare_tunery: Tunery) -> None:
        done = bare_tunery("files", "list", "--base-url", "http://127.0.0.1:1")
        assert done.exit_code == 1
        assert "Cannot connect to Tunery at http://127.0.0.1:1" in done.err
        assert "`tunery up`" in done.err
        assert "Traceback" not in done.err

    def test_a_wrong_key_is_exit_code_4_and_its_source_is_named(self, tunery: Tunery) -> None:
        done = tunery("files", "list", env={"TUNERY_API_KEY": "tnry_wrong"})
        assert done.exit_code == 4
        assert "TUNERY_API_KEY" in done.err
        assert "tnry_wrong" not in done.err

    def test_no_key_is_exit_code_4_and_the_variable_is_named(self, tunery: Tunery) -> None:
        done = tunery("files", "list", env={"TUNERY_API_KEY": ""})
        assert done.exit_code == 4
        assert "set TUNERY_API_KEY" in done.err

    def test_a_proxy_in_the_environment_is_not_used_for_this_machine(
        self, tunery: Tunery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        assert tunery("files", "list").exit_code == 0

    def test_a_response_of_another_server_is_an_error(
        self, bare_tunery: Tunery, live_server: LiveServer, api_key: str
    ) -> None:
        """A wrong path on the right server answers in our shape; a web page does not."""
        import http.server
        import threading

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.end_headers()
                self.wfile.write(b"<html>")

            def log_message(self, *_: object) -> None: ...

        with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            done = bare_tunery("files", "list", "--base-url", f"http://127.0.0.1:{server.server_port}")
            server.shutdown()
            thread.join()
        assert done.exit_code == 1
        assert "not a response of Tunery" in done.err
