"""Real S3 servers for tests: `rclone serve s3` (durable, checks signatures) and moto's server (in memory)."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import boto3
import httpx2
from botocore.config import Config

from app.storage import S3Location
from tests.deadline import until
from tests.processes import dies_with_tests
from tests.serving import free_port

BIN = Path(sys.executable).parent
START_SECONDS = 60.0
BUCKET = "tunery"
ACCESS_KEY_ID, SECRET_ACCESS_KEY = "test-key", "test-secret"


@dataclass
class S3Server:
    """A server process with the bucket `tunery`; it may be killed and started again with the same address."""

    command: list[str]
    log: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def location(self) -> S3Location:
        return S3Location(
            BUCKET, endpoint=self.endpoint, access_key_id=ACCESS_KEY_ID, secret_access_key=SECRET_ACCESS_KEY
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a service uses this bucket."""
        return {
            "TUNERY_STORAGE_URL": f"s3://{BUCKET}",
            "TUNERY_STORAGE_ENDPOINT": self.endpoint,
            "TUNERY_STORAGE_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "TUNERY_STORAGE_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        }

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [part.format(port=self.port) for part in self.command]
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=dies_with_tests()
            )
        until(self._answers, f"{self.command[0]} answers", START_SECONDS)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx2.get(self.endpoint, trust_env=False).status_code < 500
        except httpx2.TransportError:
            return False


@contextmanager
def rclone_server(directory: Path) -> Iterator[S3Server]:
    """A server whose bucket is a directory in `directory`, where each object is a file."""
    (directory / "objects" / BUCKET).mkdir(parents=True)
    keys = f"--auth-key={ACCESS_KEY_ID},{SECRET_ACCESS_KEY}"
    command = [str(BIN / "rclone"), "--config", "", "serve", "s3", "--addr", "127.0.0.1:{port}", keys]
    server = S3Server([*command, str(directory / "objects")], directory / "rclone.log")
    with _running(server):
        yield server


@contextmanager
def moto_server(directory: Path) -> Iterator[S3Server]:
    """A server in memory, which checks no signatures."""
    server = S3Server([sys.executable, "-m", "moto.server", "-p", "{port}"], directory / "moto.log")
    with _running(server):
        make_bucket(server.location)
        yield server


def make_bucket(location: S3Location) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=location.endpoint,
        region_name="us-east-1",
        aws_access_key_id=location.access_key_id,
        aws_secret_access_key=location.secret_access_key,
        config=Config(s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=location.bucket)


def with_prefix(location: S3Location, prefix: str) -> S3Location:
    return replace(location, prefix=prefix)


@contextmanager
def _running(server: S3Server) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        server.kill()
