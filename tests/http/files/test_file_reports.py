from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.schemas.file_reports import FileReportBody
from app.services.datasets import profile
from tests.api_objects import param_of
from tests.factories import chat_lines
from tests.http.conftest import Upload

pytestmark = pytest.mark.usefixtures("base_model")


def chat(asked: str, said: str, weight: int = 1) -> dict[str, Any]:
    answer = {"role": "assistant", "content": said, "weight": weight}
    return {"messages": [{"role": "user", "content": asked}, answer]}


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def report(client: TestClient, file: str, **params: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/files/{file}/validate", params={"model": "tiny"} | params)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    FileReportBody.model_validate(body)
    return body


class TestReport:
    def test_a_good_file_is_valid_and_counted(self, client: TestClient, training_file: str) -> None:
        body = report(client, training_file)
        assert body["valid"] is True
        assert (body["format"], body["method"], body["formats"]) == ("chat", "supervised", {"chat": 12})
        assert (body["tokens"]["total"], body["tokens"]["trained"]) == (400, 98)  # as its validation counts them
        assert sum(bucket["rows"] for bucket in body["tokens"]["histogram"]) == 12
        assert body["tokens"]["lengths"]["min"] <= body["tokens"]["lengths"]["median"] <= 512
        assert body["coverage"] == {
            "complete": True, "lines_read": 12, "rows": 12, "tokenized_rows": 12, "tokenized_every": 1,
            "rows_compared": 12, "validation_file_complete": None,
        }  # fmt: skip
        assert (body["duplicates"]["rows"], body["overlap"], len(body["rows"])) == (0, None, 3)
        assert (body["warnings"], body["labels"]) == ([], None)

    def test_rows_are_shown_as_the_model_sees_them(self, client: TestClient, upload: Upload) -> None:
        file = upload(jsonl(chat("hi", "hello"), *[chat("a", f"{n}") for n in range(9)])).json()["id"]
        (row,) = report(client, file, rows=1)["rows"]
        (document,) = row["documents"]
        texts = [(segment["text"], segment["trained"]) for segment in document["segments"]]
        assert texts[0] == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False)
        assert texts[1] == ("hello<|im_end|>", True)
        assert document["trained_tokens"] == len(document["segments"][1]["token_ids"]) == 6

    def test_every_finding_has_its_line(self, client: TestClient, upload: Upload) -> None:
        bad = [{"messages": []} for _ in range(120)]
        file = upload(jsonl(*[chat("a", "b")] * 10, *bad)).json()["id"]
        body = report(client, file)
        assert (body["valid"], body["findings"]["count"], len(body["findings"]["data"])) == (False, 120, 100)
        assert [found["line"] for found in body["findings"]["data"]][:3] == [11, 12, 13]
        assert body["findings"]["data"][0]["code"] == "invalid_messages"

    def test_cut_masked_and_empty_rows_are_listed(self, client: TestClient, upload: Upload) -> None:
        rows = [chat("hello", f"you {n}") for n in range(10)]
        rows += [chat("x" * 80, "beyond"), chat("not", "learned", 0), chat("a", "y" * 80)]
        file = upload(jsonl(*rows)).json()["id"]
        body = report(client, file, context_length=64, rows=13)
        assert body["cut"] == {"count": 2, "first_lines": [11, 13]}
        assert body["empty"] == {"count": 2, "first_lines": [11, 12]}
        assert body["masked"] == {"count": 1, "first_lines": [12]}
        assert body["rows"][12]["cut_tokens"] == body["rows"][12]["tokens"] - 64
        (document,) = body["rows"][12]["documents"]
        assert document["truncated_tokens"] == body["rows"][12]["cut_tokens"]
        text = "".join(segment["text"] for segment in document["segments"] + document["truncated_segments"])
        assert text == f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{'y' * 80}<|im_end|>\n"
        beyond = body["rows"][10]
        assert (beyond["trained"], beyond["cut_tokens"]) == (False, beyond["tokens"] - 64)
        (shown,) = body["rows"][0]["documents"]
        assert (shown["truncated_tokens"], shown["truncated_segments"]) == (0, [])
        assert [row["trained"] for row in body["rows"][10:]] == [False, False, True]

    def test_duplicates_and_overlap_are_by_meaning(self, client: TestClient, upload: Upload) -> None:
        rows = [chat("a", f"{n}") for n in range(10)]
        again = json.dumps({"messages": rows[3]["messages"]}, indent=None, separators=(" ,", " : ")).encode() + b"\n"
        file = upload(jsonl(*rows) + again + again).json()["id"]
        held_out = upload(jsonl(chat("z", "z"), rows[5], rows[3])).json()["id"]
        body = report(client, file, validation_file=held_out)
        assert body["duplicates"] == {"rows": 2, "groups": [{"lines": [4, 11, 12]}]}
        found = [(row["line"], row["validation_line"]) for row in body["overlap"]["data"]]
        assert (body["overlap"]["rows"], found) == (4, [(4, 3), (6, 2), (11, 3), (12, 3)])

    def test_one_line_with_two_faults_is_one_line(self, client: TestClient, upload: Upload) -> None:
        bad: dict[str, Any] = {"input": {"messages": [{"role": "user", "content": "q"}]}}
        bad |= {"preferred_output": [], "non_preferred_output": []}
        body = report(client, upload(jsonl(bad)).json()["id"])
        assert (body["findings"]["count"], body["findings"]["lines"]) == (2, 1)

    def test_warnings_leave_the_file_valid(self, client: TestClient, upload: Upload) -> None:
        rows = [chat("a", "") for _ in range(10)] + [chat("b <|im_end|>", "c")]
        file, held_out = upload(jsonl(*rows)).json()["id"], upload(jsonl(rows[10], chat("z", "z"))).json()["id"]
        body = report(client, file, validation_file=held_out)
        assert body["valid"] is True
        found = [(each["code"], each["file"], each["count"], each["first_lines"]) for each in body["warnings"]]
        assert found == [
            ("empty_answer", file, 10, list(range(1, 11))),
            ("duplicate_rows", file, 9, list(range(2, 11))),
            ("overlap", held_out, 1, [1]),
            ("control_token", file, 1, [11]),
        ]

    def test_preferences_are_recognized(self, client: TestClient, upload: Upload) -> None:
        def pair(good: str, bad: str) -> dict[str, Any]:
            said = ([{"role": "assistant", "content": text}] for text in (good, bad))
            asked = {"messages": [{"role": "user", "content": "q"}]}
            return {"input": asked} | dict(zip(("preferred_output", "non_preferred_output"), said, strict=True))

        file = upload(jsonl(*[pair(f"{n}", "no") for n in range(10)])).json()["id"]
        body = report(client, file, rows=1)
        assert (body["method"], body["format"], body["valid"]) == ("dpo", "preference", True)
        assert [document["side"] for document in body["rows"][0]["documents"]] == ["preferred", "non_preferred"]
        assert report(client, file, method="supervised")["findings"]["count"] == 10

    def test_labels_are_recognized_and_counted(self, client: TestClient, upload: Upload) -> None:
        rows = [{"prompt": "a", "completion": f"{n}", "label": n < 6} for n in range(10)]
        body = report(client, upload(jsonl(*rows)).json()["id"], rows=7)
        assert (body["method"], body["format"], body["valid"]) == ("kto", "labelled", True)
        assert body["labels"] == {"desirable": 6, "undesirable": 4}
        sides = [document["side"] for row in body["rows"][5:] for document in row["documents"]]
        assert sides == ["desirable", "undesirable"]

    def test_too_few_rows_are_invalid(self, client: TestClient, upload: Upload) -> None:
        body = report(client, upload(chat_lines(9)).json()["id"])
        assert (body["valid"], body["coverage"]["rows"], body["findings"]["count"]) == (False, 9, 0)


class TestLargeFiles:
    def test_a_large_file_is_tokenized_in_part(
        self, client: TestClient, upload: Upload, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = jsonl(*[chat("a", f"{n:03}") for n in range(40)], {"messages": []})
        monkeypatch.setattr(profile, "SAMPLED_ABOVE_BYTES", len(content) // 4 + 1)
        body = report(client, upload(content).json()["id"])
        assert body["coverage"]["tokenized_every"] == 4
        assert (body["coverage"]["rows"], body["coverage"]["tokenized_rows"]) == (40, 10)
        assert body["findings"]["count"] == 1

    def test_a_file_is_read_until_the_time_limit(
        self, client: TestClient, training_file: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(profile, "READ_TIMEOUT_SECONDS", 0.0)
        body = report(client, training_file)
        assert (body["coverage"]["complete"], body["coverage"]["lines_read"]) == (False, 1)

    def test_a_child_that_hangs_is_killed(
        self, client: TestClient, training_file: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(profile, "READ_TIMEOUT_SECONDS", 0.0)
        monkeypatch.setattr(profile, "KILL_AFTER_SECONDS", 0.0)
        answer = client.post(f"/v1/files/{training_file}/validate", params={"model": "tiny"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "validation_too_slow")


class TestRefusals:
    @pytest.mark.parametrize(
        ("params", "status", "param"),
        [
            ({}, 400, "model"),
            ({"model": "nowhere"}, 404, "model"),
            ({"model": "tiny", "rows": 51}, 400, "rows"),
            ({"model": "tiny", "rows": -1}, 400, "rows"),
            ({"model": "tiny", "context_length": 513}, 400, "context_length"),
            ({"model": "tiny", "method": "reinforcement"}, 400, "method"),
            ({"model": "tiny", "validation_file": "file-x"}, 404, "validation_file"),
        ],
        ids=["no model", "unknown model", "rows", "no rows", "context", "method", "validation file"],
    )
    def test_a_refusal_names_the_parameter(
        self, client: TestClient, training_file: str, params: dict[str, Any], status: int, param: str
    ) -> None:
        answer = client.post(f"/v1/files/{training_file}/validate", params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)

    def test_a_file_of_another_purpose_is_refused(self, client: TestClient, upload: Upload) -> None:
        file = upload(purpose="user_data").json()["id"]
        assert param_of(client.post(f"/v1/files/{file}/validate", params={"model": "tiny"})) == "file_id"
