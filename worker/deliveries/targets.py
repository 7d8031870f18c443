"""Delivery targets of every kind: what they do and get, and the files of an adapter for one of them.

And the directory of a target of kind `directory`, or which engines share with the sender:

    <path>/<served model>                       a symbolic link to the version that is current
    <path>/.tunery/<served model>/<version>/    the files; a version is never changed
    <path>/.tunery/<served model>/OWNER         the delivery target that writes here

The path may be shared by several servers of Tunery: the first one that delivers a name owns it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from app.db.tables import Delivery, File
from app.domain.deliveries.served_check import ServedCheck
from app.domain.deliveries.targets import DirectoryDestination
from app.storage import Storage
from app.system.artifact_directory import (
    ADAPTER_CONFIG,
    MANIFEST,
    SEAL,
    ManifestMismatch,
    publish,
    read_manifest,
    write_manifest,
)
from worker.deliveries.outbound import trusted_connections
from worker.jobs import stored_files

VERSIONS = ".tunery"
OWNER = "OWNER"
OWNER_WRITE_SECONDS = 60.0
KEPT_VERSIONS = 2  # the current one, and the one before, which an engine may still be reading
VERSION_CHARACTERS = 16


class DeliveryError(Exception):
    """An attempt failed; it is retried. The message says what was seen and what to do."""

    outcome = "failed"
    uncounted_seconds: float | None = None  # the delay until the next attempt, if this one does not count
    location: dict[str, Any] | None = None  # what the target has received, if no later attempt can find it


class DeliveryRefused(DeliveryError):
    """An attempt failed for a reason that no retry changes."""

    outcome = "refused"

    def __init__(self, message: str, check: ServedCheck | None = None) -> None:
        super().__init__(message)
        self.check = check


class CredentialsLost(DeliveryError):
    """The target's credentials cannot be decrypted."""

    uncounted_seconds = 60.0


class EvaluationPending(DeliveryError):
    """The evaluation that decides on the delivery has not ended."""

    outcome = "waiting"
    uncounted_seconds = 20.0


@dataclass(frozen=True)
class Delivered:
    location: dict[str, Any]
    check: ServedCheck | None = None
    gap_seconds: float = 0.0  # in which a served name had no adapter on an engine, because it was replaced


class Target(Protocol):
    def deliver(self, delivery: Delivery, adapter: Path) -> Delivered:
        """Bring the files in the directory `adapter`, which may be changed. Repeatable. Raises DeliveryError."""

    def withdraw(self, delivery: Delivery) -> None:
        """Remove the adapter from the target; no error if it has none. Repeatable. Raises DeliveryError."""


def fetch_adapter(storage: Storage, files: Sequence[File], directory: Path) -> None:
    """Copy the files into a new directory. Raises DeliveryError for a file that is missing or damaged."""
    directory.mkdir(parents=True)
    for file in files:
        try:
            with trusted_connections():
                sha256 = stored_files.fetch(storage, file.storage_key, directory / Path(file.filename).name)
        except OSError as error:
            reason = error.strerror or "it is missing"
            raise DeliveryError(
                f"The file {file.filename} of the adapter cannot be copied from storage to the sender: {reason}"
            ) from error
        if sha256 != file.sha256:
            raise DeliveryError(f"The file {file.filename} of the adapter is damaged in storage; its SHA-256 differs")


def address_adapter(directory: Path, model: str, base_name: str, **entries: str) -> str:
    """Set `base_model_name_or_path`, and the manifest accordingly, which then also names the model and has `entries`.

    Returns the manifest's SHA-256: the version.
    """
    path = directory / ADAPTER_CONFIG
    config = json.loads(path.read_bytes())
    if config.get("base_model_name_or_path") != base_name:
        text = json.dumps(config | {"base_model_name_or_path": base_name}, indent=2, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")
    manifest = {key: value for key, value in read_manifest(directory).items() if key not in ("files", SEAL)}
    (directory / MANIFEST).unlink()
    return write_manifest(directory, manifest | {"fine_tuned_model": model} | entries)


@dataclass(frozen=True)
class DirectoryTarget:
    destination: DirectoryDestination
    allowed: Sequence[str]

    def deliver(self, delivery: Delivery, adapter: Path) -> Delivered:
        base_name = self.destination.base_name or delivery.job.base_model
        root = allowed_path(self.destination.path, self.allowed)
        version = place(root, delivery, adapter, base_name)
        link(root, delivery.served_model, version)
        return Delivered({"path": str(root / delivery.served_model), "version": version})

    def withdraw(self, delivery: Delivery) -> None:
        remove(allowed_path(self.destination.path, self.allowed), delivery)


def allowed_path(path: str, allowed: Sequence[str]) -> Path:
    """The real path: a link may lead out of the allowed directories. Raises DeliveryRefused, DeliveryError."""
    real = Path(path).resolve()
    if not any(real.is_relative_to(Path(each).resolve()) for each in allowed):
        names = ", ".join(allowed) or "none"
        raise DeliveryRefused(
            f"{path} is not inside a directory that the operator allows (TUNERY_DELIVERY_DIRECTORIES: {names})"
        )
    if not real.is_dir():
        raise DeliveryError(f"The directory {path} does not exist on the server that delivers; create or mount it")
    return real


def place(root: Path, delivery: Delivery, adapter: Path, base_name: str) -> str:
    """Store the files as a version, and return it; nothing names it yet. Raises DeliveryError."""
    version = address_adapter(adapter, delivery.model, base_name)[:VERSION_CHARACTERS]
    versions = root / VERSIONS / delivery.served_model
    try:
        versions.mkdir(parents=True, exist_ok=True)
        _own(versions, delivery)
        if not (versions / version).exists():
            staged = versions / f".{version}.staged"
            shutil.rmtree(staged, ignore_errors=True)  # left by a crash
            try:
                staged.mkdir()
                for path in adapter.iterdir():
                    shutil.copy2(path, staged)
                publish(staged, versions / version)
            except OSError:  # of a full disk, which these files would keep full
                shutil.rmtree(staged, ignore_errors=True)
                raise
    except OSError as error:
        raise _not_writable(root, error) from error
    return version


def link(root: Path, name: str, version: str) -> None:
    """Make a version the current one, and remove old ones. Raises DeliveryError."""
    path = root / name
    if os.path.lexists(path) and not path.is_symlink():
        raise DeliveryError(f"{path} exists and was not made by Tunery; remove it, or choose another served_model")
    try:
        temporary = root / f".{name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(f"{VERSIONS}/{name}/{version}")
        os.replace(temporary, path)
        others = [path for path in (root / VERSIONS / name).iterdir() if path.is_dir() and path.name != version]
        for old in sorted(others, key=lambda each: each.stat().st_mtime, reverse=True)[KEPT_VERSIONS - 1 :]:
            shutil.rmtree(old)
    except OSError as error:
        raise _not_writable(root, error) from error


def remove(root: Path, delivery: Delivery) -> None:
    """Remove the versions of an adapter, if the name is this target's. Raises DeliveryError.

    The name goes with them, and its other versions, if this adapter is the current one; another one stays.
    """
    versions, path = root / VERSIONS / delivery.served_model, root / delivery.served_model
    try:
        if not versions.exists() or (versions / OWNER).read_text() != delivery.target_id:
            return
        ours = versions_of(root, delivery)
        is_current = path.is_symlink() and path.readlink().name in ours
        if is_current:
            path.unlink()
        for version in ours:
            shutil.rmtree(versions / version)
        if is_current or {each.name for each in versions.iterdir()} == {OWNER}:
            shutil.rmtree(versions)
    except OSError as error:
        raise _not_writable(root, error) from error


def versions_of(root: Path, delivery: Delivery) -> list[str]:
    """The stored versions that are this adapter, and not another one under the same name. Raises OSError."""
    versions = root / VERSIONS / delivery.served_model
    delivered, found = (delivery.location or {}).get("version"), []
    for path in filter(Path.is_dir, versions.iterdir() if versions.is_dir() else ()):
        with suppress(ManifestMismatch):
            if path.name == delivered or read_manifest(path).get("fine_tuned_model") == delivery.model:
                found.append(path.name)
    return found


def _own(versions: Path, delivery: Delivery) -> None:
    """Raises DeliveryError for a name of another target, which may belong to another server."""
    try:
        with (versions / OWNER).open("x") as file:
            file.write(delivery.target_id)
    except FileExistsError:
        owner = (versions / OWNER).read_text()
        if not owner and time.time() - (versions / OWNER).stat().st_mtime > OWNER_WRITE_SECONDS:
            (versions / OWNER).write_text(delivery.target_id)  # the process that created it was killed
        elif not owner:
            raise DeliveryError(f"{versions / OWNER} is being written; it is tried again") from None
        elif owner != delivery.target_id:
            raise DeliveryError(
                f"{delivery.served_model} in this directory belongs to the delivery target {owner}, perhaps of another "
                "Tunery server; choose another path or served_model"
            ) from None


def _not_writable(root: Path, error: OSError) -> DeliveryError:
    reason = error.strerror or error
    return DeliveryError(f"The directory {root} cannot be written: {reason}; make it writable, with free space")
