"""The examples of the reference, for curl and for the official client, send the requests that were recorded."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from openai import HttpxBinaryResponseContent, OpenAI

from app.api.openapi import request_examples
from app.api.openapi.request_examples import ExampleRequest, example_request
from tests.api_objects import EXAMPLES
from tools.docs.reference import document


@lru_cache
def requests() -> dict[str, ExampleRequest]:
    return {
        f"{method.upper()} {path}": example_request(method, path, operation, document())
        for path, item in document()["paths"].items()
        for method, operation in item.items()
    }


CONTENT = b'{"prompt": "Capital of Peru?", "completion": "Lima"}\n'


@dataclass
class StandIn:
    """A server that keeps each request and answers with what was recorded for its operation."""

    answer: Mapping[str, Any] = field(default_factory=dict)  # {"200 application/json": body}
    received: list[tuple[str, str, str, bytes]] = field(default_factory=list)  # method, target, media type, body
    url: str = ""


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            media_type = self.headers.get("content-type", "").split(";")[0]
            stand_in.received.append((self.command, self.path, media_type, sent))
            kind, example = next(iter(stand_in.answer.items()))
            body = example | {"has_more": False} if isinstance(example, dict) else example  # one page, for the client
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", kind.split(" ")[1])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = respond  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        stand_in.url = f"http://127.0.0.1:{http.server_port}"
        yield stand_in
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def in_directory_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "*")


def check_received(request: ExampleRequest, received: tuple[str, str, str, bytes]) -> None:
    method, target, media_type, body = received
    url = urlsplit(target)
    assert (method, unquote(url.path)) == (request.method, unquote(request.path))
    assert dict(parse_qsl(url.query)) == dict(request.query)
    if request.media_type is not None:
        assert media_type == request.media_type
    if request.media_type == request_examples.JSON:
        assert json.loads(body) == request.body
    elif request.media_type is not None:
        assert CONTENT.strip() in body


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_every_curl_example_sends_its_request(server: StandIn, subtests: pytest.Subtests) -> None:
    environment = os.environ | {"TUNERY": server.url, "KEY": "Authorization: Bearer key"}
    for name, request in requests().items():
        with subtests.test(name):
            server.answer = EXAMPLES[name]["responses"]
            Path(request_examples.FILE_NAME).write_bytes(CONTENT)  # a download before may have replaced it
            subprocess.run(
                ["bash", "-c", request_examples.curl(request)], env=environment, capture_output=True, check=True
            )
            check_received(request, server.received.pop())


def test_every_python_example_sends_its_request(server: StandIn, subtests: pytest.Subtests) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="key", admin_api_key="key", max_retries=0)
    names = {"client": client, "HttpxBinaryResponseContent": HttpxBinaryResponseContent, "Path": Path}
    snippets = {name: text for name, request in requests().items() if (text := request_examples.python(request))}
    for name, snippet in snippets.items():
        with subtests.test(name), contextlib.redirect_stdout(io.StringIO()):
            server.answer = EXAMPLES[name]["responses"]
            Path(request_examples.FILE_NAME).write_bytes(CONTENT)  # a download before may have replaced it
            exec(snippet, dict(names))
            check_received(requests()[name], server.received.pop(0))
            server.received.clear()  # of further pages
