"""What breaks home-made servers, thrown at every operation that the OpenAPI document has, whichever those are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from httpx2 import Response
from starlette.testclient import TestClient

from app.db.tables import Job
from tests.lanes import Sampled

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
JOBS = "/v1/fine_tuning/jobs"
# As they stand in a URL: empty, dots, blanks, other scripts, what ends a string elsewhere, broken UTF-8, and long ones.
IDS = (
    "%20", "%2e", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%00b", "%0d%0aX-Injected:%201", "%09", "%ff%fe",
    "%ed%a0%80", quote("größe"), quote("大"), quote("🤖"), "'%20OR%201=1--", "%25s", "%7B%7D", "null", "undefined", "0",
    "-1", "1e400", "true", "[object%20Object]", "file-", "ftjob-", "file-" + "0" * 24, "FTJOB-0", "a" * 256, "a" * 5000,
)  # fmt: skip
NO_JSON_OBJECT = {
    "nothing": b"",
    "blanks": b" \n",
    "half": b'{"model": "tiny"',
    "two": b"{}{}",
    "a list": b"[]",
    "a string": b'"x"',
    "a number": b"1",
    "null": b"null",
    "NaN": b'{"seed": NaN}',
    "infinity": b'{"seed": -Infinity}',
    "1e400": b'{"seed": 1e400}',
    "a huge integer": b'{"seed": ' + b"9" * 400 + b"}",
    "very many digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"model": "tiny", "model": "tiny"}',
    "a deep key twice": b'{"lora": {"r": 1, "r": 1}}',
    "deep lists": b'{"lora": ' + b"[" * 500 + b"]" * 500 + b"}",
    "deep objects": b'{"a": ' * 500 + b"1" + b"}" * 500,
    "very deep lists": b"[" * 100_000,
    "Latin-1": b'{"suffix": "gr\xf6\xdfe"}',
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "single quotes": b"{'model': 'tiny'}",
    "a trailing comma": b'{"model": "tiny",}',
    "a comment": b'{} // "model"',
    "a form": b"model=tiny&training_file=file-1",
    "a multipart form": b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--x--\r\n',
}

# A value of each wrong kind in each field: none of them may be taken for something that it is not.
VALUES: tuple[Any, ...] = (True, False, "x", "7", "", 7, -7, 1.5, 1e300, [], [1], {}, {"x": 1})
TAKEN: dict[str, tuple[Any, ...]] = {
    "suffix": ("x", "7"),
    "seed": (7,),
    "metadata": ({},),
    "integrations": ([],),
    "sample_prompts": ([],),
    "method": ({},),
    "hyperparameters": ({},),
    "lora": ({}, True),
    "quantization": ({},),
}
NUMBERS = (7, 1.5)
TAKEN_HYPERPARAMETERS: dict[str, tuple[Any, ...]] = {
    "n_epochs": (7,),
    "batch_size": (7,),
    "learning_rate_multiplier": NUMBERS,
    "learning_rate": NUMBERS,
    "warmup_ratio": (),
    "weight_decay": NUMBERS,
    "max_grad_norm": NUMBERS,
    "lr_scheduler_type": (),
    "context_length": (7,),
    "packing": (True, False),
    "max_steps": (7,),
    "lora_r": (7,),
    "lora_alpha": NUMBERS,
    "lora_dropout": (),
    "lora_target_modules": (),
    "load_in_4bit": (True, False),
}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return dict(app.openapi())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method.upper() in METHODS:
                yield method.upper(), path, operation


def error_of(answer: Response, request_text: str) -> dict[str, Any]:
    """Whatever is wrong, it is never our fault, and always in OpenAI's shape."""
    assert 400 <= answer.status_code < 500, f"{request_text}: {answer.status_code} {answer.text[:300]}"
    body = answer.json()
    assert body.keys() == {"error"}, request_text
    assert body["error"].keys() == {"message", "type", "param", "code"}, request_text
    assert body["error"]["message"], request_text
    assert answer.headers["x-request-id"], request_text
    return dict(body["error"])


def numbers_in_the_query(operation: dict[str, Any]) -> Iterator[str]:
    for parameter in operation.get("parameters", ()):
        kinds = [kind.get("type") for kind in (parameter["schema"], *parameter["schema"].get("anyOf", ()))]
        if parameter["in"] == "query" and {"integer", "number"} & {*kinds}:
            yield parameter["name"]


def with_id(path: str, value: str) -> str:
    """Every placeholder of a path replaced."""
    return "/".join(value if part.startswith("{") else part for part in path.split("/"))


class TestEveryId:
    def test_that_is_malformed_is_a_404_or_a_400(
        self, client: TestClient, document: dict[str, Any], sampled: Sampled
    ) -> None:
        for method, path, _ in operations(document):
            for value in sampled(IDS) if "{" in path else ():
                answer = client.request(method, with_id(path, value))
                error_of(answer, f"{method} {with_id(path, value)}")
                assert "x-injected" not in answer.headers

    def test_that_is_unknown_is_a_404(self, client: TestClient, document: dict[str, Any]) -> None:
        for method, path, operation in operations(document):
            if "{" in path and "requestBody" not in operation:
                answer = client.request(method, with_id(path, "ftjob-nothere"))
                error_of(answer, f"{method} {path}")
                assert answer.status_code in (403, 404), f"{method} {path}"

    @pytest.mark.parametrize("field", ["model", "training_file", "validation_file"])
    def test_in_a_body_is_refused_with_its_name(
        self, client: TestClient, base_model: str, training_file: str, field: str
    ) -> None:
        for value in ("", " ", "..", "a" * 300, "a\nb", "大", 7, True, [], {}, ["file-1"], 1.5):
            answer = client.post(JOBS, json={"model": base_model, "training_file": training_file, field: value})
            assert answer.status_code in (400, 404)
            assert error_of(answer, f"{field} = {value!r}")["param"] == field


class TestEveryBody:
    @pytest.mark.parametrize("route", [JOBS, f"{JOBS}/plan"])
    def test_that_is_no_json_object_is_refused(self, client: TestClient, route: str) -> None:
        for name, body in NO_JSON_OBJECT.items():
            answer = client.post(route, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400
            assert error_of(answer, name)["code"] == "invalid_json", name

    @pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x", ""])
    def test_of_every_operation_is_never_our_fault(
        self, client: TestClient, document: dict[str, Any], content_type: str, sampled: Sampled
    ) -> None:
        urls = [(m, with_id(p, "nothere")) for m, p, operation in operations(document) if "requestBody" in operation]
        for method, url in urls:
            for name, body in sampled(NO_JSON_OBJECT.items()):
                answer = client.request(method, url, content=body, headers={"Content-Type": content_type})
                error_of(answer, f"{method} {url} with {name}")

    def test_of_a_call_that_takes_none_is_not_looked_at(self, client: TestClient, succeeded: Job) -> None:
        """Clients send `Content-Type: application/json` and nothing; others send an object or rubbish."""
        for content in (b"", b"{}", b"null", b"rubbish", b"\xff"):
            answer = client.post(
                f"{JOBS}/{succeeded.id}/cancel", content=content, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 400
            assert error_of(answer, "cancel")["code"] == "invalid_job_state"

    @pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "br", "zstd", "GZIP", "gzip, gzip", "lzma"])
    def test_that_is_compressed_is_refused_with_a_request_for_plain_content(
        self, client: TestClient, encoding: str
    ) -> None:
        declared = {"filename": "a.bin", "purpose": "user_data", "bytes": 3, "mime_type": "application/octet-stream"}
        upload = client.post("/v1/uploads", json=declared).json()["id"]
        for method, url in (("POST", JOBS), ("POST", "/v1/files"), ("PUT", f"/v1/uploads/{upload}/content")):
            headers = {"Content-Encoding": encoding, "Content-Type": "multipart/form-data; boundary=x"}
            answer = client.request(method, url, content=b"abc", headers=headers)
            assert answer.status_code == 415, f"{method} {url}"
            error = error_of(answer, f"{method} {url}")
            assert (error["param"], error["code"]) == ("Content-Encoding", "unsupported_content_encoding")
            assert "only identity" in error["message"]

    def test_that_names_no_compression_as_its_encoding_is_read(
        self, client: TestClient, base_model: str, training_file: str
    ) -> None:
        body = {"model": base_model, "training_file": training_file}
        for encoding in ("identity", "", "utf-8"):
            assert client.post(JOBS, json=body, headers={"Content-Encoding": encoding}).status_code == 200

    def test_of_an_upload_that_is_no_multipart_form_is_refused(self, client: TestClient) -> None:
        for content_type in ("application/json", "application/x-www-form-urlencoded", "", "multipart/"):
            answer = client.post("/v1/files", content=b'{"purpose": "batch"}', headers={"Content-Type": content_type})
            assert answer.status_code == 400
            assert error_of(answer, content_type)["code"] == "invalid_multipart"

    def test_is_read_as_json_whatever_its_content_type_says(
        self, client: TestClient, base_model: str, training_file: str
    ) -> None:
        body = json.dumps({"model": base_model, "training_file": training_file}).encode()
        for content_type in ("application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded"):
            assert client.post(JOBS, content=body, headers={"Content-Type": content_type}).status_code == 200


class TestEveryType:
    def test_of_a_field(self, client: TestClient, base_model: str, training_file: str, sampled: Sampled) -> None:
        for field, taken in sampled(TAKEN.items()):
            self._try(client, {"model": base_model, "training_file": training_file}, (field,), taken)

    def test_of_a_parameter(self, client: TestClient, base_model: str, training_file: str, sampled: Sampled) -> None:
        body = {"model": base_model, "training_file": training_file}
        for parameter, taken in sampled(TAKEN_HYPERPARAMETERS.items()):
            self._try(client, body, ("hyperparameters", parameter), taken)
        self._try(
            client, body, ("method", "supervised", "hyperparameters", "n_epochs"), TAKEN_HYPERPARAMETERS["n_epochs"]
        )

    def _try(self, client: TestClient, body: dict[str, Any], path: tuple[str, ...], taken: tuple[Any, ...]) -> None:
        for value in VALUES:
            nested: Any = value
            for key in reversed(path):
                nested = {key: nested}
            answer = client.post(JOBS, json=body | nested)
            request_text = f"{'.'.join(path)} = {value!r}"
            if any(value == one and type(value) is type(one) for one in taken):
                assert answer.status_code == 200, f"{request_text}: {answer.text}"
                continue
            assert answer.status_code == 400, f"{request_text}: {answer.text[:300]}"
            param = error_of(answer, request_text)["param"]
            assert path[-1] in (param or "") or (param or "").startswith(f"{path[0]}."), f"{request_text}: {param}"


class TestEveryQuery:
    def test_with_a_limit_that_is_none_is_refused(self, client: TestClient, succeeded: Job) -> None:
        for path in self._lists(succeeded):
            for limit in ("0", "-1", "1.5", "1e3", "x", "", "true", "0x10", "NaN", "None", "1,2", "%00"):
                error = error_of(client.get(f"{path}?limit={limit}"), f"{path}?limit={limit}")
                assert error["param"] == "limit" or limit == "%00"

    def test_with_a_huge_limit_gets_the_maximum_or_is_refused(self, client: TestClient, succeeded: Job) -> None:
        for path in self._lists(succeeded):
            for digits in (18, 30, 4000):
                answer = client.get(f"{path}?limit={'9' * digits}")
                assert answer.status_code == 200 or error_of(answer, path)["param"] == "limit"

    def test_with_a_huge_number_of_any_kind_is_answered_or_refused_by_its_name(
        self, client: TestClient, document: dict[str, Any], succeeded: Job, sampled: Sampled
    ) -> None:
        for method, path, operation in sampled(operations(document)):
            for name in numbers_in_the_query(operation):
                for digits in (9, 18, 30, 400):
                    url = f"{with_id(path, succeeded.id)}?{name}={'9' * digits}"
                    assert client.request(method, url).status_code < 500, url

    def test_with_a_cursor_that_is_none_is_refused(self, client: TestClient, succeeded: Job) -> None:
        for path in self._lists(succeeded):
            for after in ("", "x", "%ff", "%00", "%F0%9F%A4%96", "a" * 5000, "file-1&after=file-2"):
                error_of(client.get(f"{path}?after={after}"), f"{path}?after={after[:40]}")

    def test_with_a_filter_that_is_none_is_refused(self, client: TestClient) -> None:
        for query in ("metadata=", "metadata=x", "metadata=NULL", "metadata={}"):
            assert error_of(client.get(f"{JOBS}?{query}"), query)["param"] == "metadata"

    def test_with_an_odd_filter_finds_nothing(self, client: TestClient, succeeded: Job) -> None:
        for query in ("metadata[]=x", "metadata[a][b]=x", "metadata[a]=%ff", "metadata[%F0%9F%A4%96]=x"):
            answer = client.get(f"{JOBS}?{query}")
            assert answer.status_code == 200
            assert answer.json()["data"] == []

    @staticmethod
    def _lists(job: Job) -> tuple[str, ...]:
        return ("/v1/files", JOBS, f"{JOBS}/{job.id}/events", f"{JOBS}/{job.id}/checkpoints")


class TestEveryUrl:
    def test_with_another_method_is_a_405_that_names_the_right_ones(
        self, client: TestClient, document: dict[str, Any], sampled: Sampled
    ) -> None:
        for path, item in sampled(document["paths"].items()):
            url = with_id(path, "nothere")
            for method in {*METHODS, "OPTIONS", "TRACE", "PROPFIND"} - {known.upper() for known in item}:
                answer = client.request(method, url)
                if answer.status_code == 404:
                    continue  # the same URL belongs to another path, whose method it is: nothing is there
                assert error_of(answer, f"{method} {url}")["code"] == "method_not_allowed"
                assert answer.status_code == 405
                allowed = set(answer.headers["allow"].split(", "))
                assert allowed >= {known.upper() for known in item}, f"{method} {url}: {allowed}"

    @pytest.mark.usefixtures("base_model")  # without one the service is not ready
    def test_answers_head_without_a_body_and_never_with_our_fault(
        self, client: TestClient, document: dict[str, Any]
    ) -> None:
        for path in document["paths"]:
            answer = client.head(with_id(path, "nothere"))
            assert answer.status_code in (200, 400, 403, 404, 405), path
            assert answer.content == b"", path
            assert answer.headers["x-request-id"]

    def test_with_a_slash_at_its_end_is_a_404_and_no_redirect(
        self, client: TestClient, document: dict[str, Any]
    ) -> None:
        """A redirect would turn a POST into a GET in some clients, and drop the key in others."""
        for method, path, _ in operations(document):
            answer = client.request(method, with_id(path, "nothere") + "/", follow_redirects=False)
            # 403: names of base models and aliases may have slashes, and the key is no admin's.
            has_name = path.endswith(("base_models/{model}", "model_aliases/{name}"))
            assert answer.status_code in ((403,) if has_name else (404, 405)), path
            error_of(answer, f"{method} {path}/")

    def test_that_is_nearly_right_is_a_404(self, client: TestClient) -> None:
        for url in ("/v1", "/v1/", "/v1//files", "/V1/files", "/v2/files", "/v1/file", "/openai", "/openai/v1"):
            answer = client.get(url, follow_redirects=False)
            assert answer.status_code == 404
            assert error_of(answer, url)["code"] == "unknown_url"
