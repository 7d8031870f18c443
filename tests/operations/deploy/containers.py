"""A service of docker-compose.yml as a process on this host: its own command, its own environment, its own check.

Nothing is repeated here and nothing of this shell leaks in. What a container engine would do is translated, no more:
a path under a mount becomes a path in a temporary directory, the images' Python becomes ours.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.operations.deploy import compose, dockerfile
from tests.operations.deploy.compose import ROOT, Service

START_SECONDS = 60.0
INSIDE = {  # paths in a container, and what stands for them
    "/run/secrets": "secrets",
    "/var/lib/tunery": "data",
    "/var/cache/tunery": "cache",
    "/models": "models",
}


@dataclass(frozen=True)
class Host:
    """The directory that stands for the volumes, and what is in `.env`."""

    directory: Path
    variables: dict[str, str]

    def service(self, name: str) -> Service:
        return compose.services(self.variables)[name]

    def run(
        self, name: str, command: list[str] | None = None, seconds: float = START_SECONDS, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """`docker compose run --rm NAME [COMMAND]`, with `more` in its environment."""
        words = self.translate(command or self.service(name)["command"])
        return subprocess.run(
            words, env=self.environment(name) | more, cwd="/", capture_output=True, text=True, timeout=seconds
        )

    @contextmanager
    def running(self, name: str) -> Iterator[Container]:
        """`docker compose up NAME`; killed at the end, if nobody stopped it."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.translate(self.service(name)["command"]),
                env=self.environment(name), cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield Container(self, name, process, log)
        finally:
            process.kill()
            process.wait()

    def health(self, name: str) -> subprocess.CompletedProcess[str]:
        """The check, as the engine would run it beside the service."""
        return self.run(name, self.health_check(name))

    def health_check(self, name: str) -> list[str]:
        service = self.service(name)
        if "healthcheck" not in service:
            return dockerfile.load().health_check(compose.target(service))
        kind, *words = service["healthcheck"]["test"]
        assert kind == "CMD"
        return words

    def environment(self, name: str) -> dict[str, str]:
        service = self.service(name)
        image = dockerfile.load().environment(compose.target(service))
        given = {key: self.outside(str(value)) for key, value in (image | service["environment"]).items()}
        if "UVICORN_PORT" in given:
            given |= {"UVICORN_HOST": "127.0.0.1", "UVICORN_PORT": self.variables["API_PORT"]}
        return given | {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    def translate(self, command: list[str]) -> list[str]:
        words = {"python": [sys.executable], "tunery": [sys.executable, "-c", "from app.cli.main import main; main()"]}
        return [*words.get(command[0], command[:1]), *(self.outside(word) for word in command[1:])]

    def outside(self, text: str) -> str:
        for inside, directory in INSIDE.items():
            if text.startswith(inside):
                return str(self.directory / directory) + text.removeprefix(inside)
        return text


@dataclass
class Container:
    host: Host
    name: str
    process: subprocess.Popen[Any]
    log: Path

    def wait_until_healthy(self) -> None:
        """Each check takes a process's start, so the loop needs no pause."""
        deadline = time.monotonic() + START_SECONDS
        while (check := self.host.health(self.name)).returncode != 0:
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{check.stderr}\n{self.log.read_text()}"

    def stop(self) -> tuple[int, float]:
        """What `docker compose stop` does. The exit code, and how long it took."""
        asked = time.monotonic()
        self.process.terminate()
        grace = compose.seconds(self.host.service(self.name)["stop_grace_period"])
        return self.process.wait(timeout=grace), time.monotonic() - asked


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])
