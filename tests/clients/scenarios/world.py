"""What a scenario knows of the service: its address, its keys, and what its document says it can do.

Nothing in this directory imports ours: it runs in an environment that has the official client and pytest, and no more.
"""

from __future__ import annotations

import functools
import json
import os
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

CONTEXT: dict[str, Any] = json.loads(Path(os.environ["TUNERY_CONTEXT"]).read_text(encoding="utf-8"))
BASE_URL: str = CONTEXT["base_url"]
KEY: str = CONTEXT["key"]
MODEL: str = CONTEXT["model"]
ROOT_URL = BASE_URL.removesuffix("/v1")
MAJOR = int(openai.__version__.split(".")[0])
ENDED = ("succeeded", "failed", "cancelled")
ORDER = ("validating_files", "queued", "running", "succeeded")
JOB_SECONDS = 300.0  # two cores with much else to do


def shown_once(scenario: str) -> pytest.MarkDecorator:
    """For a long scenario in which the client has no part: it runs with one generation."""
    return pytest.mark.skipif(scenario not in CONTEXT["shows"], reason="shown with another generation")


def connect(**options: Any) -> openai.OpenAI:
    """A client of this generation's project; `api_key`, `base_url`, ... may differ."""
    return openai.OpenAI(**{"base_url": BASE_URL, "api_key": KEY, **options})


def counting(seen: list[str], **options: Any) -> openai.OpenAI:
    """A client that notes every request it sends, retries included."""
    hooks = {"request": [lambda request: seen.append(f"{request.method} {request.url.path}")]}
    return connect(http_client=openai.DefaultHttpxClient(event_hooks=hooks), **options)


def until(condition: Callable[[], Any], what: str, seconds: float = JOB_SECONDS, interval: float = 0.2) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(interval)
    return value


def finished(client: openai.OpenAI, job_id: str, may_go_back: bool = False) -> Any:
    """Poll as scripts do. The statuses on the way only move forward, but for a job whose worker died."""
    seen: list[str] = []

    def ended() -> Any:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status not in seen:
            seen.append(job.status)
        return job if job.status in ENDED else None

    job = until(ended, f"{job_id} has ended; seen were {seen}")
    steps = [ORDER.index(status) for status in seen if status in ORDER]
    assert may_go_back or steps == sorted(steps), f"{job_id} went backwards: {seen}"
    return job


def succeeded(client: openai.OpenAI, job_id: str, may_go_back: bool = False) -> Any:
    job = finished(client, job_id, may_go_back)
    assert job.status == "succeeded", f"{job_id} is {job.status}: {job.error}"
    return job


def step_of(client: openai.OpenAI, job_id: str) -> int:
    """The optimizer step that a job has reached. Raises if it has ended: whoever asks came too late."""
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.status not in ENDED, f"{job_id} is {job.status} already: {job.error}"
    return int((extra(job)["progress"] or {}).get("step") or 0)


def extra(thing: Any) -> dict[str, Any]:
    """Our fields beside OpenAI's."""
    return dict(thing.model_extra or {})


@functools.cache
def document() -> dict[str, Any]:
    with urllib.request.urlopen(f"{ROOT_URL}/openapi.json") as answer:
        return dict(json.load(answer))


def need_route(name: str) -> None:
    """Skip, with the reason, where the server's document does not have `POST /v1/uploads` or whatever is named."""
    method, path = name.split()
    if method.lower() not in document()["paths"].get(path, {}):
        pytest.skip(f"this server has no {name}")


def need_word(word: str) -> None:
    """Skip where the server's document never mentions `word`."""
    if word.lower() not in json.dumps(document()).lower():
        pytest.skip(f"this server's document does not mention {word}")
