"""Tunery's HTTP API as the plugin uses it: find the archive of a named adapter, and download it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

CHECKPOINT = re.compile(r"(?P<model>ft:.+):ckpt-step-\d+")
CHUNK_BYTES = 1 << 20


class UnknownModel(Exception):
    """Tunery has no adapter of this name for this key."""


class AccessRefused(Exception):
    """Tunery refuses the key or its scopes; the message is Tunery's."""


class ServiceUnavailable(Exception):
    """No usable response: no connection, a 5xx, or incomplete bytes."""


@dataclass(frozen=True)
class Archive:
    """A tar of an adapter's files."""

    path: str  # below /v1
    sha256: str
    size_bytes: int


class Service:
    """Tunery with one API key. `requests` omits the key when a redirect leads to another host."""

    def __init__(self, base_url: str, api_key: str, timeout_seconds: float) -> None:
        self._base_url = base_url
        self._timeout_seconds = timeout_seconds
        self._session = requests.Session()
        self._session.auth = _BearerKey(api_key)

    def find(self, name: str) -> Archive:
        """The archive of a finished job or of a kept checkpoint.

        Raises UnknownModel, AccessRefused, ServiceUnavailable.
        """
        checkpoint = CHECKPOINT.fullmatch(name)
        model = self._get(f"models/{quote(checkpoint['model'] if checkpoint else name, safe='')}")
        job_id = model.get("fine_tuning_job_id")
        if not job_id:
            raise UnknownModel(f"{name} is a base model")
        if checkpoint:
            return self._find_checkpoint(job_id, name)
        archive = self._get(f"fine_tuning/jobs/{job_id}/adapter")["archive"]
        return Archive(f"fine_tuning/jobs/{job_id}/adapter/archive", archive["sha256"], archive["bytes"])

    def download(self, archive: Archive, destination: Path) -> None:
        """Write the archive to a new file, and compare its SHA-256.

        Raises UnknownModel, AccessRefused, ServiceUnavailable, OSError.
        """
        digest = hashlib.sha256()
        with destination.open("xb") as file:
            for chunk in self._stream(archive.path):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != archive.sha256:
            raise ServiceUnavailable(f"{archive.path} has SHA-256 {digest.hexdigest()} instead of {archive.sha256}")

    def _find_checkpoint(self, job_id: str, name: str) -> Archive:
        checkpoints = self._get(f"fine_tuning/jobs/{job_id}/checkpoints?limit=100")["data"]
        for checkpoint in checkpoints:
            if checkpoint["fine_tuned_model_checkpoint"] == name:
                file = self._get(f"files/{checkpoint['adapter_archive_file_id']}")
                return Archive(f"files/{file['id']}/content", file["sha256"], file["bytes"])
        raise UnknownModel(f"job {job_id} keeps no checkpoint {name}")

    def _get(self, path: str) -> dict[str, Any]:
        with self._request(path, stream=False) as response:
            try:
                return dict(response.json())
            except ValueError as error:
                raise ServiceUnavailable(f"the response to {path} is not JSON") from error

    def _stream(self, path: str) -> Iterator[bytes]:
        with self._request(path, stream=True) as response:
            try:
                yield from response.iter_content(CHUNK_BYTES)
            except requests.RequestException as error:
                raise ServiceUnavailable(f"{path}: {error}") from error

    def _request(self, path: str, stream: bool) -> requests.Response:
        try:
            response = self._session.get(f"{self._base_url}/v1/{path}", stream=stream, timeout=self._timeout_seconds)
        except requests.RequestException as error:
            raise ServiceUnavailable(f"{path}: {error}") from error
        if response.ok:
            return response
        with response:
            message = f"{response.status_code} for {path}: {_message(response)}"
        if response.status_code == 404:
            raise UnknownModel(message)
        if response.status_code in (400, 401, 403):
            raise AccessRefused(message)
        raise ServiceUnavailable(message)


class _BearerKey(requests.auth.AuthBase):
    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason or "no message"
