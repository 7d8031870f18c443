"""A stand-in engine that answers: the responses of vLLM 0.32.0's /v1/chat/completions, with faults that tests ask for.

Also the rows of a model that was delivered to it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.db.deliveries import credentials as encryption
from app.db.deliveries import deliveries
from app.db.tables import Checkpoint, Delivery, Job
from tests.factories import NUMBERS, make_target

TO_ENGINES = {"delivery_allow_http": True, "delivery_allowed_networks": "127.0.0.0/8"}
BASE = "served-base"
WORDS = ("My", " parcel", " is", " lost", ".")
CREATED = 1795000480
MOMENT_SECONDS = 0.005


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class AnsweringEngine:
    api_key: str | None = None
    fault: tuple[int, dict[str, str], bytes] | None = None  # of every response to a POST
    models: tuple[str, ...] = (BASE,)  # of the list, without a parent
    dies_after: int | None = None  # events of a stream, after which the connection breaks
    is_endless: bool = False  # a stream goes on until the client is gone
    gate: threading.Event = field(default_factory=threading.Event)  # a stream waits for it after its first event
    asked: list[Asked] = field(default_factory=list)
    sent_events: int = 0
    client_gone: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, asked: Asked) -> dict[str, Any]:
        text, is_chat = "".join(WORDS), "chat" in asked.path
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choices = [{"index": n, **said, "finish_reason": "stop"} for n in range(asked.body.get("n") or 1)]
        return {
            "id": "chatcmpl-1", "object": "chat.completion" if is_chat else "text_completion", "created": CREATED,
            "model": asked.body["model"], "choices": choices,
            "usage": {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9},
        }  # fmt: skip

    def events(self, asked: Asked) -> Iterator[bytes]:
        while True:
            for word in WORDS:
                said = {"delta": {"content": word}} if "chat" in asked.path else {"text": word}
                chunk = {
                    "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED,
                    "model": asked.body["model"], "choices": [{"index": 0, **said, "finish_reason": None}],
                }  # fmt: skip
                yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
            if not self.is_endless:
                break
        if (asked.body.get("stream_options") or {}).get("include_usage"):
            usage = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}}
            yield b"data: " + json.dumps(usage).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


@contextmanager
def answering(engine: AnsweringEngine | None = None) -> Iterator[AnsweringEngine]:
    engine = engine or AnsweringEngine()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            models = [{"id": id, "root": "/models/base", "parent": None} for id in engine.models]
            models.append({"id": "a", "root": "/a", "parent": BASE})
            self._send(200, {}, json.dumps({"object": "list", "data": models}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            engine.asked.append(asked)
            if engine.api_key and self.headers.get("authorization") != f"Bearer {engine.api_key}":
                self._send(401, {}, b'{"error": "Unauthorized"}')
            elif engine.fault is not None:
                self._send(*engine.fault)
            elif body.get("stream"):
                self._stream(asked)
            else:
                self._send(200, {}, json.dumps(engine.answer(asked)).encode())

        def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in (
                {"Content-Type": "application/json", "Content-Length": str(len(content))} | headers
            ).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, asked: Asked) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for number, event in enumerate(engine.events(asked)):
                    if number == engine.dies_after:
                        self.close_connection = True
                        self.connection.close()
                        return
                    self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                    engine.sent_events += 1
                    engine.gate.wait()
                    if engine.is_endless:
                        time.sleep(MOMENT_SECONDS)  # the pace of an engine, not a wait of a test
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                engine.client_gone.set()
                self.close_connection = True

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None: ...

    engine.gate.set()
    server = Server(("127.0.0.1", engine.port), Handler)
    server.daemon_threads = True
    engine.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield engine
    finally:
        engine.is_endless = False
        engine.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def deliver(
    session: Session, job: Job, *urls: str, name: str = "", served_model: str | None = None,
    base_model: str | None = None, api_key: str | None = None, encryption_keys: Sequence[str] = (),
) -> Delivery:  # fmt: skip
    """A target with these servers, to which the result of the job was delivered."""
    destination = {"kind": "vllm", "urls": list(urls), "shared_path": "/srv/adapters", "base_model": base_model}
    secret = encryption.encrypt(encryption_keys, {"api_key": api_key}) if api_key else None
    target = make_target(
        session, job.project_id, name or f"engine-{next(NUMBERS)}", destination, secret, served_model=served_model
    )
    checkpoint = session.query(Checkpoint).filter_by(name=job.fine_tuned_model).one()
    delivery = deliveries.create(session, job, checkpoint, target)
    session.execute(update(Delivery).where(Delivery.id == delivery.id).values(state="delivered", attempt=1))
    return delivery
