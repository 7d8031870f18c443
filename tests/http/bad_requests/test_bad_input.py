"""What breaks home-made servers, thrown at every operation that the OpenAPI document has, whichever those are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from httpx2 import Response
from starlette.testclient import TestClient

from app.db.tables import Job
from tests.http.conftest import begin_upload
from tests.lanes import Sampled

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
JOBS = "/v1/fine_tuning/jobs"
# As they stand in a URL: dots, blanks, control characters, what ends a string elsewhere, broken UTF-8, and long ones.
IDS = (
    "%20", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "%0d%0aX-Injected:%201", "%ff%fe", "%ed%a0%80", quote("🤖"),
    "'%20OR%201=1--", "%25s", "%7B%7D", "null", "-1", "1e400", "[object%20Object]", "file-", "FTJOB-0", "a" * 5000,
)  # fmt: skip
NO_JSON_OBJECT = {
    "nothing": b"",
    "blanks": b" \n",
    "half": b'{"model": "tiny"',
    "two": b"{}{}",
    "a list": b"[]",
    "null": b"null",
    "NaN": b'{"seed": NaN}',
    "1e400": b'{"seed": 1e400}',
    "very many digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"model": "tiny", "model": "tiny"}',
    "a deep key twice": b'{"lora": {"r": 1, "r": 1}}',
    "deep objects": b'{"a": ' * 500 + b"1" + b"}" * 500,
    "very deep lists": b"[" * 100_000,
    "Latin-1": b'{"suffix": "gr\xf6\xdfe"}',
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a form": b"model=tiny&training_file=file-1",
}

# A value of each wrong kind in each field: none of them may be taken for something that it is not.
VALUES: tuple[Any, ...] = (True, "x", "7", 7, 1.5, 1e300, [1], {"x": 1})
ACCEPTED: dict[str, tuple[Any, ...]] = {
    "suffix": ("x", "7"),
    "seed": (7,),
    "metadata": (),
    "sample_prompts": (),
    "lora": (True,),
    "hyperparameters.n_epochs": (7,),
    "hyperparameters.learning_rate": (7, 1.5),
    "hyperparameters.warmup_ratio": (),
    "hyperparameters.packing": (True,),
    "hyperparameters.lora_target_modules": (),
    "method.supervised.hyperparameters.n_epochs": (7,),
}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return dict(app.openapi())


@pytest.fixture
def job(base_model: str, training_file: str) -> dict[str, Any]:
    """The body of a job."""
    return {"model": base_model, "training_file": training_file}


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
    assert body["error"].keys() == {"message", "type", "param", "code", "doc_url"}, request_text
    assert body["error"]["message"], request_text
    assert answer.headers["x-request-id"], request_text
    return dict(body["error"])


def with_id(path: str, value: str) -> str:
    """Every placeholder of a path replaced."""
    return "/".join(value if part.startswith("{") else part for part in path.split("/"))


def test_a_malformed_id_is_a_client_error(client: TestClient, document: dict[str, Any], sampled: Sampled) -> None:
    for method, path, _ in operations(document):
        for value in sampled(IDS) if "{" in path else ():
            answer = client.request(method, with_id(path, value))
            error_of(answer, f"{method} {with_id(path, value)}")
            assert "x-injected" not in answer.headers


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x"])
def test_an_invalid_body_of_every_operation_is_a_client_error(
    client: TestClient, document: dict[str, Any], content_type: str, sampled: Sampled
) -> None:
    urls = [(m, with_id(p, "none")) for m, p, operation in operations(document) if "requestBody" in operation]
    for method, url in urls:
        for name, body in sampled(NO_JSON_OBJECT.items()):
            answer = client.request(method, url, content=body, headers={"Content-Type": content_type})
            error_of(answer, f"{method} {url} with {name}")


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "gzip, gzip"])
def test_a_compressed_body_is_a_415(client: TestClient, encoding: str) -> None:
    upload = begin_upload(client, 3)
    for method, url in (("POST", JOBS), ("POST", "/v1/files"), ("PUT", f"{upload}/content")):
        headers = {"Content-Encoding": encoding, "Content-Type": "multipart/form-data; boundary=x"}
        answer = client.request(method, url, content=b"abc", headers=headers)
        assert answer.status_code == 415, f"{method} {url}"
        error = error_of(answer, f"{method} {url}")
        assert (error["param"], error["code"]) == ("Content-Encoding", "unsupported_content_encoding")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Encoding", "identity"),
        ("Content-Encoding", ""),
        ("Content-Encoding", "utf-8"),
        ("Content-Type", "text/plain"),
        ("Content-Type", "application/x-www-form-urlencoded"),
    ],
)
def test_a_json_body_is_read_with_any_header_that_names_no_compression(
    client: TestClient, job: dict[str, Any], name: str, value: str
) -> None:
    assert client.post(JOBS, json=job, headers={name: value}).status_code == 200


def test_a_value_of_a_wrong_type_is_refused_with_its_param(
    client: TestClient, job: dict[str, Any], sampled: Sampled
) -> None:
    for path, accepted in sampled(ACCEPTED.items()):
        keys = path.split(".")
        for value in VALUES:
            nested: Any = value
            for key in reversed(keys):
                nested = {key: nested}
            answer = client.post(JOBS, json=job | nested)
            if any(value == one and type(value) is type(one) for one in accepted):
                assert answer.status_code == 200, f"{path} = {value!r}: {answer.text}"
                continue
            assert answer.status_code == 400, f"{path} = {value!r}: {answer.text[:300]}"
            param = error_of(answer, path)["param"] or ""
            assert keys[-1] in param or param.startswith(f"{keys[0]}."), f"{path} = {value!r}: {param}"


def test_an_invalid_metadata_filter_is_refused_and_an_odd_one_finds_nothing(client: TestClient, succeeded: Job) -> None:
    for query in ("metadata=", "metadata=NULL", "metadata={}", "metadata[team=a"):
        assert error_of(client.get(f"{JOBS}?{query}"), query)["param"] == "metadata"
    for query in ("metadata[]=x", "metadata[a][b]=x", "metadata[a]=%ff", "metadata[%F0%9F%A4%96]=x"):
        answer = client.get(f"{JOBS}?{query}")
        assert (answer.status_code, answer.json()["data"]) == (200, [])


def test_another_method_is_a_405_with_the_allowed_ones(
    client: TestClient, document: dict[str, Any], sampled: Sampled
) -> None:
    for path, item in sampled(document["paths"].items()):
        url = with_id(path, "none")
        for method in {*METHODS, "OPTIONS", "TRACE", "PROPFIND"} - {known.upper() for known in item}:
            answer = client.request(method, url)
            if answer.status_code == 404:
                continue  # the same URL belongs to another path, whose method it is: nothing is there
            assert error_of(answer, f"{method} {url}")["code"] == "method_not_allowed"
            assert answer.status_code == 405
            allowed = set(answer.headers["allow"].split(", "))
            assert allowed >= {known.upper() for known in item}, f"{method} {url}: {allowed}"


def test_a_slash_at_the_end_is_a_404_and_no_redirect(client: TestClient, document: dict[str, Any]) -> None:
    """A redirect would turn a POST into a GET in some clients, and drop the key in others."""
    for method, path, _ in operations(document):
        answer = client.request(method, with_id(path, "none") + "/", follow_redirects=False)
        # 403: names of base models and aliases may have slashes, and the key is no admin's.
        has_name = path.endswith(("base_models/{model}", "model_aliases/{name}"))
        assert answer.status_code in ((403,) if has_name else (404, 405)), path
        error_of(answer, f"{method} {path}/")
