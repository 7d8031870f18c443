"""A web server on loopback that records webhooks and returns configured responses."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.loopback import Answer, Received, serving_loopback


@dataclass
class Receiver:
    """Responses are `answers` in their order, each a status or what `tests.loopback` takes; then 204."""

    port: int = 0
    answers: list[Any] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def respond(self, request: Received) -> Answer:
        self.received.append(request)
        answer: Any = self.answers.pop(0) if self.answers else 204
        return (answer, {}, b"") if isinstance(answer, int) else answer


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver()
    with serving_loopback(receiver.respond, tls=tls) as receiver.port:
        yield receiver
