"""POST /v1/files with a table, and with a share of the rows held out: two files that know each other, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.jobs import jobs
from app.db.tables import File, Job, Project
from app.services.files import file_preparation
from app.storage import LocalStorage
from app.system.table_files import TOO_LARGE
from tests.api_objects import error_of
from tests.datasets.workbooks import parquet, workbook_members, write_bomb, zipped
from tests.factories import chat_lines
from tests.http.conftest import Upload

JOBS = "/v1/fine_tuning/jobs"
ROWS = [(f"ticket {n}", "card" if n % 3 else "pin") for n in range(30)]
CSV = ("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)).encode()
SPLIT = {"columns": "text,label", "held_out_percent": "20", "seed": "7"}
KINDS = {
    "bank.csv": CSV,
    "bank.tsv": CSV.replace(b",", b"\t"),
    "bank.xlsx": zipped(workbook_members([("text", "label"), *ROWS])),
    "bank.parquet": parquet({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}),
}


def lines(client: TestClient, file_id: str) -> list[tuple[str, str]]:
    """(input, output) of each line of a file."""
    content = client.get(f"/v1/files/{file_id}/content").text
    examples = [[message["content"] for message in json.loads(line)["messages"]] for line in content.splitlines()]
    return [(example[0], example[-1]) for example in examples]


def left_on_disk(storage: LocalStorage) -> list[Path]:
    return [path for path in storage.root.rglob("*") if path.is_file()]


@pytest.fixture
def split_file(upload: Upload) -> dict[str, Any]:
    return dict(upload(CSV, filename="bank.csv", **SPLIT).raise_for_status().json())


@pytest.mark.parametrize("name", KINDS)
def test_a_table_becomes_two_files_that_know_each_other(upload: Upload, client: TestClient, name: str) -> None:
    training = upload(KINDS[name], filename=name, **SPLIT).raise_for_status().json()
    held_out = client.get(f"/v1/files/{training['held_out_file_id']}").json()
    assert (training["filename"], held_out["filename"]) == ("bank.jsonl", "bank-held-out.jsonl")
    assert (training["line_count"], held_out["line_count"]) == (24, 6)
    assert held_out["training_file_id"] == training["id"]
    assert "training_file_id" not in training
    assert (
        training["preparation"]
        == held_out["preparation"]
        == {
            "columns": "text,label",
            "held_out_percent": 20,
            "seed": 7,
            "rows": 30,
            "held_out_rows": 6,
            "skipped_rows": 0,
            "held_out_max_bytes": 99,
            "grader": "label_accuracy",
            "labels": {"card": {"training": 16, "held_out": 4}, "pin": {"training": 8, "held_out": 2}},
        }
    )
    parts = [lines(client, file["id"]) for file in (training, held_out)]
    assert sorted(parts[0] + parts[1]) == sorted(ROWS)
    listed = {file["id"]: file for file in client.get("/v1/files").json()["data"]}
    assert listed == {training["id"]: training, held_out["id"]: held_out}


def test_json_lines_are_split_without_columns(upload: Upload, client: TestClient) -> None:
    training = upload(chat_lines(20), held_out_percent="10").raise_for_status().json()
    assert training["preparation"] | {"labels": None, "columns": None} == training["preparation"]
    assert (training["preparation"]["seed"], training["line_count"]) == (0, 18)
    content = [
        client.get(f"/v1/files/{each}/content").content for each in (training["id"], training["held_out_file_id"])
    ]
    assert sorted(b"".join(content).splitlines()) == sorted(chat_lines(20).splitlines())


def test_a_table_alone_is_one_file(upload: Upload, client: TestClient) -> None:
    file = upload(b"a,card\n,pin\nb,pin\n", columns="#1,#2").raise_for_status().json()
    assert lines(client, file["id"]) == [("a", "card"), ("b", "pin")]
    assert (file["preparation"]["skipped_rows"], "held_out_file_id" in file) == (1, False)


def test_a_plain_upload_shows_nothing_of_it(upload: Upload) -> None:
    assert not {"held_out_file_id", "training_file_id", "preparation"} & upload().json().keys()


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        (SPLIT | {"held_out_percent": "51", "seed": "-1"}, "held_out_percent", ("from 1 to 50", "seed: ")),
        (SPLIT | {"columns": "text", "held_out_percent": "x"}, "columns", ("two or three", "held_out_percent: ")),
        (SPLIT | {"columns": "te\nxt,label"}, "columns", ("two or three",)),
        (SPLIT | {"columns": "text,#2"}, "columns", ("not both",)),
        (SPLIT | {"columns": "text,text"}, "columns", ("twice",)),
        ({"columns": "text,label", "seed": "1"}, "seed", ("without held_out_percent",)),
        (SPLIT | {"purpose": "batch"}, "columns", ("fine-tune",)),
        (SPLIT | {"columns": "text,answer"}, "columns", ('no "answer"', '"label"')),
        ({"held_out_percent": "10"}, "file", ("CSV with the columns",)),
    ],
)
def test_fields_that_cannot_be_used_are_refused_together(
    upload: Upload, storage: LocalStorage, fields: dict[str, str], param: str, said: tuple[str, ...]
) -> None:
    error = error_of(upload(CSV, **fields), 400)
    assert error["param"] == param
    assert all(text in error["message"] for text in said)
    assert left_on_disk(storage) == []


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (CSV + b"a,b,c\n" * 3, "invalid_training_file", "file"),
        (b"text,label\n" + b"same,card\n" * 9, None, "held_out_percent"),
        (b'{"prompt": "a", "completion": "b"}\n', None, "columns"),
    ],
)
def test_content_that_cannot_be_used_is_refused(
    upload: Upload, storage: LocalStorage, content: bytes, code: str | None, param: str
) -> None:
    error = error_of(upload(content, **SPLIT), 400)
    assert (error["param"], error["code"]) == (param, code or error["code"])
    assert left_on_disk(storage) == []


def test_a_second_file_that_cannot_be_stored_leaves_none(
    upload: Upload, client: TestClient, storage: LocalStorage, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the storage, and by the quota, which has room for the first file only."""
    put, stored = type(storage).put, []

    def put_once(self: LocalStorage, key: str, path: Path) -> Any:
        stored.append(key)
        if len(stored) == 2:
            raise OSError(28, "No space left on device")
        return put(self, key, path)

    with monkeypatch.context() as patched:
        patched.setattr(type(storage), "put", put_once)
        assert upload(CSV, **SPLIT).status_code == 507
    assert (len(stored), left_on_disk(storage)) == (2, [])
    with transaction(sessions) as session:
        session.query(Project).update({"max_stored_bytes": 2800})
    assert error_of(upload(CSV, **SPLIT), 429)["code"] == "insufficient_quota"
    assert left_on_disk(storage) == []
    assert client.get("/v1/files").json()["data"] == []


def test_a_repeated_request_returns_the_same_two_files(client: TestClient, sessions: Sessions) -> None:
    def send(**fields: str) -> Any:
        form = {"purpose": "fine-tune"} | SPLIT | fields
        headers = {"Idempotency-Key": "k"}
        return client.post("/v1/files", data=form, files={"file": ("bank.csv", CSV)}, headers=headers)

    first, again = send(), send()
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert send(seed="8").status_code == 400
    with transaction(sessions) as session:
        assert session.query(File).count() == 2


def test_both_files_expire_and_belong_to_their_project(
    upload: Upload, client: TestClient, foreign_headers: dict[str, str]
) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    training = upload(CSV, **SPLIT, **expiry).raise_for_status().json()
    held_out = client.get(f"/v1/files/{training['held_out_file_id']}").json()
    assert held_out["expires_at"] == training["expires_at"] == training["created_at"] + 3600
    assert client.get(f"/v1/files/{held_out['id']}", headers=foreign_headers).status_code == 404


class TestJobs:
    """A job on the training file validates and evaluates with the held-out rows, unless its request says otherwise."""

    @pytest.fixture(autouse=True)
    def _base_model(self, base_model: str) -> None:
        pass

    def create(self, client: TestClient, file: dict[str, Any], **fields: Any) -> Any:
        return client.post(JOBS, json={"model": "tiny", "training_file": file["id"]} | fields).raise_for_status().json()

    def test_the_held_out_rows_are_the_default(self, client: TestClient, split_file: dict[str, Any]) -> None:
        held_out = split_file["held_out_file_id"]
        job = self.create(client, split_file, hyperparameters={"early_stopping": True})
        assert job["validation_file"] == job["request"]["validation_file"] == held_out
        assert job["request"]["evaluation"]["file"] == held_out
        assert job["request"]["evaluation"]["graders"] == [{"type": "label_accuracy", "name": "label"}]
        clone = client.post(f"{JOBS}/{job['id']}/clone", json={}).json()
        assert clone["validation_file"] == held_out
        plan = client.post(f"{JOBS}/plan", json={"model": "tiny", "training_file": split_file["id"]}).json()
        assert "no_validation_file" not in [warning["code"] for warning in plan["warnings"]]

    def test_null_turns_either_off(self, client: TestClient, split_file: dict[str, Any], sessions: Sessions) -> None:
        job = self.create(client, split_file, validation_file=None)
        assert (job["validation_file"], job["request"]["evaluation"]["file"]) == (None, split_file["held_out_file_id"])
        job = self.create(client, split_file, evaluation=None)
        with transaction(sessions) as session:
            stored = jobs.get(session, session.query(Project.id).scalar(), job["id"])
            assert isinstance(stored, Job)
            assert (stored.validation_file_id, stored.spec["evaluation"]) == (split_file["held_out_file_id"], None)

    def test_a_deleted_held_out_file_is_no_default(self, client: TestClient, split_file: dict[str, Any]) -> None:
        client.delete(f"/v1/files/{split_file['held_out_file_id']}").raise_for_status()
        job = self.create(client, split_file)
        assert (job["validation_file"], "evaluation" in job["request"]) == (None, False)

    def test_rows_that_may_not_fit_the_context_are_not_evaluated_by_default(
        self, client: TestClient, upload: Upload
    ) -> None:
        rows = "".join(f"ticket {n} {'x' * 5000},{'ab'[n % 2]}\n" for n in range(20))
        file = upload(f"text,label\n{rows}".encode(), **SPLIT).raise_for_status().json()
        job = self.create(client, file)
        assert (job["validation_file"], "evaluation" in job["request"]) == (file["held_out_file_id"], False)


def test_a_process_that_ends_is_a_400_and_leaves_nothing(
    upload: Upload, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its memory, and by its time."""
    start = b'<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>'
    write_bomb(tmp_path / "bomb.xlsx", "xl/sharedStrings.xml", start, blocks=60, members=1)
    monkeypatch.setattr(file_preparation, "MEMORY_BYTES", 256 << 20)
    assert error_of(upload((tmp_path / "bomb.xlsx").read_bytes(), **SPLIT), 400)["message"] == TOO_LARGE
    monkeypatch.setattr(file_preparation, "read_seconds", lambda _: 0.0)
    assert error_of(upload(CSV, **SPLIT), 400)["param"] == "file"
    assert left_on_disk(storage) == []


def test_the_official_client_sends_the_fields(client: TestClient, api_key: str) -> None:
    official = openai.OpenAI(base_url="http://testserver/v1", api_key=api_key, http_client=client)
    extra = {"columns": "text,label", "held_out_percent": 20, "seed": 7}
    file = official.files.create(file=("bank.csv", CSV), purpose="fine-tune", extra_body=extra)
    made: Any = file.to_dict()["preparation"]
    assert made["held_out_rows"] == 6
