"""The dashboard as a process of its own, as `tunery up` starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx2

from tests.deadline import until
from tests.serving import free_port

START_SECONDS = 60.0


@contextmanager
def dashboard(api_url: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run the dashboard of an API until the block ends; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    variables = {
        "TUNERY_WEB_API_URL": api_url,
        "TUNERY_WEB_PORT": str(port),
        "TUNERY_LOG_JSON": "false",
        **(environment or {}),
    }
    process = subprocess.Popen([sys.executable, "-m", "app.web"], env=os.environ | variables)
    try:
        until(lambda: _answers(url), "the dashboard", START_SECONDS)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def sign_in(url: str, api_key: str) -> dict[str, str]:
    """The session cookie of a browser that signed in with the key."""
    form = {"api_key": api_key, "next": "/jobs"}
    response = httpx2.post(f"{url}/sign-in", data=form, trust_env=False, follow_redirects=False, timeout=START_SECONDS)
    return dict(response.cookies)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", trust_env=False).is_success
    except httpx2.TransportError:
        return False
