"""An inference engine without a model: vLLM's calls with its plugin for adapters, and streams that break on request."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_server import running

BASE = "served-base"
WORDS = ("My", " parcel", " is", " lost")


@dataclass
class Engine:
    loaded: set[str] = field(default_factory=set)  # the plugin finds every name
    dies_after: int | None = None  # events of a stream, or 0: before a response
    url: str = ""

    def models(self) -> dict[str, Any]:
        found = [{"id": BASE, "root": "/models/base", "parent": None}]
        return {"data": found + [{"id": name, "root": f"/cache/{name}", "parent": BASE} for name in self.loaded]}

    def chunks(self, body: dict[str, Any]) -> Iterator[bytes]:
        kind = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        for word in WORDS:
            choice = {"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None}
            yield json.dumps(kind | {"choices": [choice]}).encode()
        end = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
        yield json.dumps(kind | {"choices": [end]}).encode()
        yield b"[DONE]"


@contextlib.contextmanager
def running_engine() -> Iterator[Engine]:
    engine = Engine()
    with running(_handler(engine)) as engine.url:
        yield engine


def _handler(engine: Engine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(engine.models())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body.get("stream"):
                self._stream(body)
            elif self.path == "/v1/completions":  # a delivery makes the plugin load the adapter
                engine.loaded.add(body["model"])
                self._send({"choices": [{"index": 0, "text": "x"}]})
            elif self.path == "/v1/unload_lora_adapter":
                engine.loaded.discard(body["lora_name"])
                self._send({})

        def _send(self, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, body: dict[str, Any]) -> None:
            if engine.dies_after == 0:
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for number, chunk in enumerate(engine.chunks(body)):
                if number == engine.dies_after:
                    return
                self.wfile.write(b"data: " + chunk + b"\n\n")

        def log_message(self, *args: Any) -> None:
            pass

    return Handler
