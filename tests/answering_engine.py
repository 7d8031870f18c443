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
from http.server import BaseHTTPRequestHandler
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.db.deliveries import credentials as encryption
from app.db.deliveries import deliveries
from app.db.tables import Checkpoint, Delivery, Job
from tests.factories import NUMBERS, make_target
from tests.loopback import Answer, Received, serving_loopback

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

    def respond(self, request: Received) -> Answer:
        if request.method == "GET":
            models = [{"id": id, "root": "/models/base", "parent": None} for id in self.models]
            models.append({"id": "a", "root": "/a", "parent": BASE})
            return _as_json(200, {"object": "list", "data": models})
        asked = Asked(request.path, request.headers, json.loads(request.body))
        self.asked.append(asked)
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return _as_json(401, {"error": "Unauthorized"})
        if self.fault is not None:
            status, headers, content = self.fault
            return status, {"Content-Type": "application/json"} | headers, content
        if asked.body.get("stream"):
            return lambda handler: self._stream(asked, handler)
        return _as_json(200, self.answer(asked))

    def _stream(self, asked: Asked, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for number, event in enumerate(self.events(asked)):
                if number == self.dies_after:
                    handler.close_connection = True
                    handler.connection.close()
                    return
                self.sent_events += 1  # before the client can look
                handler.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                self.gate.wait()
                if self.is_endless:
                    time.sleep(MOMENT_SECONDS)  # the pace of an engine, not a wait of a test
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.client_gone.set()
            handler.close_connection = True


def _as_json(status: int, value: Any) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def answering(engine: AnsweringEngine | None = None) -> Iterator[AnsweringEngine]:
    engine = engine or AnsweringEngine()
    engine.gate.set()
    with serving_loopback(engine.respond, engine.port, protocol="HTTP/1.1") as engine.port:
        try:
            yield engine
        finally:
            engine.is_endless = False
            engine.gate.set()


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
