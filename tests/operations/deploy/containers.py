"""A service of docker-compose.yml as a process on this host: its own command, its own environment, its own check.

Nothing is repeated here and nothing of this shell leaks in. What a container engine would do is translated, no more:
a path under a mount becomes a path in a temporary directory, the images' Python becomes ours. With TUNERY_API_IMAGE,
the root directory of the API's image (tests/images), its services run there with their own paths and account.
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
    "/backups": "backups",
}
API_IMAGE = os.environ.get("TUNERY_API_IMAGE")
# Arguments: root directory, account, then pairs of a path outside and one inside up to `--`, then the command.
IN_IMAGE = """
root=$1 user=$2; shift 2
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; touch "$root$2"; fi
  mount --rbind "$1" "$root$2"; shift 2
done
shift
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" --groups= "$root" "$@"
"""


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
        words = self.translate(name, command or self.service(name)["command"])
        return subprocess.run(
            words, env=self.environment(name) | more, cwd="/", capture_output=True, text=True, timeout=seconds
        )

    @contextmanager
    def running(self, name: str) -> Iterator[Container]:
        """`docker compose up NAME`; killed at the end, if nobody stopped it."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.translate(name, self.service(name)["command"]),
                env=self.environment(name), cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield Container(self, name, process, log)
        finally:
            if process.poll() is None:  # the init of an image passes SIGTERM on, and cannot pass SIGKILL
                (process.terminate if self.has_image(name) else process.kill)()
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
        given = {key: self.outside(name, str(value)) for key, value in (image | service["environment"]).items()}
        if "UVICORN_PORT" in given:
            given |= {"UVICORN_HOST": "127.0.0.1", "UVICORN_PORT": self.variables["API_PORT"]}
        if self.has_image(name):
            return given | {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TINI_SUBREAPER": "1"}
        return given | {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    def translate(self, name: str, command: list[str]) -> list[str]:
        if self.has_image(name):
            begin = [*dockerfile.load().last("api", "ENTRYPOINT").words, *command]
            return [*self.in_image(name), *(self.outside(name, word) for word in begin)]
        words = {"python": [sys.executable], "tunery": [sys.executable, "-c", "from app.cli.main import main; main()"]}
        return [*words.get(command[0], command[:1]), *(self.outside(name, word) for word in command[1:])]

    def has_image(self, name: str) -> bool:
        return API_IMAGE is not None and compose.target(self.service(name)) == "api"

    def in_image(self, name: str) -> list[str]:
        """The command before a service's own: its mounts, a root directory that is read-only, its account.

        `/tmp` is this host's: it has the sockets of the servers, and base models have one path in every process.
        """
        service = self.service(name)
        secrets = [f"/run/secrets/{secret}" for secret in service.get("secrets", [])]
        volumes = [path for path in ("/var/lib/tunery", "/backups") if (self.directory / INSIDE[path]).exists()]
        shared = [(path, path) for path in ("/dev", "/proc", "/tmp", "/etc/resolv.conf")]
        mounts = [*shared, *((str(self.directory / self.below(path)), path) for path in (*secrets, *volumes))]
        words = [word for mount in mounts for word in mount]
        return ["unshare", "--mount", "sh", "-euc", IN_IMAGE, "sh", str(API_IMAGE), service["user"], *words, "--"]

    def outside(self, name: str, text: str) -> str:
        if self.has_image(name) and not text.startswith("/models"):
            return text
        return str(self.directory / self.below(text)) if self.below(text) else text

    def below(self, text: str) -> str | None:
        """Where a path in a container stands below the directory; None if it is not one of a mount."""
        return next((name + text.removeprefix(path) for path, name in INSIDE.items() if text.startswith(path)), None)


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
