"""A stand-in for OpenAI's API, owned by the tests: files, fine-tuning jobs with events, and answers of a model.

It answers as OpenAI's documentation and recorded transcripts say, and misbehaves on request. `requests` has every
request, so a test sees that an import only reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
KEY = "sk-stand-in"


def chat_lines(count: int = 12) -> bytes:
    lines = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}"}]}
        for n in range(count)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@dataclass
class StandInOpenAI:
    """The content of the account, and its faults."""

    files: dict[str, bytes] = field(default_factory=dict)
    jobs: list[Json] = field(default_factory=list)  # oldest first
    names: dict[str, str] = field(default_factory=dict)  # of files whose name does not follow from the id
    result_files: set[str] = field(default_factory=set)  # ids of `files` with another purpose than fine-tune
    requests: list[tuple[str, str]] = field(default_factory=list)
    limited: Counter[str] = field(default_factory=Counter)  # path -> how many requests are answered with a 429
    cut: set[str] = field(default_factory=set)  # file ids whose content breaks off in the middle, once
    without_content: set[str] = field(default_factory=set)  # ids of listed files whose content is a 404
    refused: dict[str, int] = field(default_factory=dict)  # text of a prompt -> status of the answer
    may_read_jobs: bool = True
    without_events: set[str] = field(default_factory=set)  # ids of jobs whose events are a 404
    answer: Callable[[Json], str | Json] = lambda body: f"old: {body['messages'][-1]['content']}"
    url: str = ""

    def add_file(self, file_id: str, content: bytes | None = None) -> str:
        self.files[file_id] = chat_lines() if content is None else content
        return file_id

    def add_job(self, job_id: str, **changes: Any) -> Json:
        job = {
            "id": job_id,
            "object": "fine_tuning.job",
            "created_at": 1_750_000_000 + len(self.jobs),
            "finished_at": 1_750_003_600,
            "model": "gpt-4o-mini-2024-07-18",
            "fine_tuned_model": f"ft:gpt-4o-mini-2024-07-18:acme:support:{job_id[-4:]}",
            "organization_id": "org-acme",
            "status": "succeeded",
            "hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.8},
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.8}},
            },
            "training_file": "file-train",
            "validation_file": None,
            "result_files": ["file-results"],
            "trained_tokens": 1234,
            "seed": 42,
            "error": {},
            "integrations": [],
            "metadata": {"team": "search"},
            "user_provided_suffix": "support",
        } | changes
        self.jobs.append(job)
        return job

    def respond(self, method: str, path: str, query: dict[str, list[str]], body: Json) -> tuple[int, Json | bytes]:
        parts = path.removeprefix("/v1/").split("/")
        if parts[0] == "evals":
            kind = ("eval", "eval.run", "eval.run.output_item")[len(parts) // 2]
            return 200, page([{"id": f"{kind}-1", "object": kind}])
        if parts[0] == "files":
            return self._files(parts[1:])
        if parts[:2] == ["fine_tuning", "jobs"]:
            if not self.may_read_jobs:
                return 403, error("You have insufficient permissions for this operation.", None)
            return self._jobs(parts[2:], query)
        if path == "/v1/chat/completions" and method == "POST":
            if status := self.refused.get(body["messages"][-1]["content"]):
                return status, error("Invalid prompt: it was flagged.", None)
            answer = self.answer(body)
            message = {"role": "assistant", "content": answer, "refusal": None} if isinstance(answer, str) else answer
            reason = message.pop("finish_reason", "stop")
            choice = {"index": 0, "finish_reason": reason, "message": message, "logprobs": None}
            model, created = body["model"], 1_750_000_000
            return 200, {
                "id": "c",
                "object": "chat.completion",
                "created": created,
                "model": model,
                "choices": [choice],
            }
        return 404, error(f"Invalid URL ({method} {path})", None)

    def _files(self, parts: list[str]) -> tuple[int, Json | bytes]:
        if not parts:
            return 200, page([self._file(file_id) for file_id in self.files if file_id not in self.result_files])
        if parts[0] not in self.files or (parts[1:] and parts[0] in self.without_content):
            return 404, error(f"No such File object: {parts[0]}", "id")
        return 200, self.files[parts[0]] if parts[1:] else self._file(parts[0])

    def _file(self, file_id: str) -> Json:
        return {
            "id": file_id,
            "object": "file",
            "bytes": len(self.files[file_id]),
            "created_at": 1_740_000_000,
            "filename": self.names.get(file_id, f"{file_id.removeprefix('file-')}.jsonl"),
            "purpose": "fine-tune-results" if file_id in self.result_files else "fine-tune",
            "status": "processed",
        }

    def _jobs(self, parts: list[str], query: dict[str, list[str]]) -> tuple[int, Json]:
        if not parts:
            newest_first = self.jobs[::-1]
            after = query.get("after", [""])[0]
            begin = next((n + 1 for n, job in enumerate(newest_first) if job["id"] == after), 0)
            size = 2  # small pages, so that the client needs several
            return 200, page(newest_first[begin : begin + size], begin + size < len(newest_first))
        if parts[1:] == ["checkpoints"]:
            checkpoint = {
                "id": f"ftckpt_{parts[0]}",
                "object": "fine_tuning.job.checkpoint",
                "created_at": 1,
                "fine_tuned_model_checkpoint": "ft:gpt-4o-mini-2024-07-18:acme:support:9xYz:ckpt-step-10",
                "fine_tuning_job_id": parts[0],
                "metrics": {"step": 10, "train_loss": 0.5},
                "step_number": 10,
            }
            return 200, page([checkpoint]) | {"first_id": checkpoint["id"], "last_id": checkpoint["id"]}
        if parts[0] in self.without_events:
            return 404, error(f"Could not find fine tune: {parts[0]}", None)
        event = {
            "id": "ftevent-1",
            "object": "fine_tuning.job.event",
            "created_at": 1,
            "level": "info",
            "message": f"Created fine-tuning job: {parts[0]}",
            "type": "message",
            "data": {},
        }
        return 200, page([event])


def page(items: list[Json], has_more: bool = False) -> Json:
    return {"object": "list", "data": items, "has_more": has_more}


def error(message: str, param: str | None) -> Json:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, account: StandInOpenAI, *args: Any) -> None:
        self.account = account
        super().__init__(*args)

    def do_GET(self) -> None:
        self._handle({})

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_DELETE(self) -> None:
        self._handle({})

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self, body: Json) -> None:
        account, url = self.account, urlsplit(self.path)
        account.requests.append((self.command, url.path))
        headers = {}
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            status, answer = 401, error("Incorrect API key provided.", None)
        elif account.limited[url.path] > 0:
            account.limited[url.path] -= 1
            status, answer, headers = 429, error("Rate limit reached", None), {"retry-after-ms": "1"}
        else:
            status, answer = account.respond(self.command, url.path, parse_qs(url.query), body)  # type: ignore[assignment]
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        file_id = url.path.removesuffix("/content").rpartition("/")[2]
        if url.path.endswith("/content") and file_id in account.cut:
            account.cut.discard(file_id)
            content = content[: len(content) // 2]
        self.wfile.write(content)


@contextmanager
def stand_in_openai() -> Iterator[StandInOpenAI]:
    account = StandInOpenAI()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, account))
    server.daemon_threads = True
    Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    account.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield account
    finally:
        server.shutdown()
        server.server_close()
