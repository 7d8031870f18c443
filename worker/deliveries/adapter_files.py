"""The files of an adapter for one target: from the storage, verified, with the base model's name that it needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from app.db.tables import File
from app.storage import Storage
from app.system.artifact_directory import ADAPTER_CONFIG, MANIFEST, SEAL, read_manifest, write_manifest
from worker.deliveries.destination import DeliveryError
from worker.deliveries.outbound import trusted_connections
from worker.jobs.artifacts import stored_files


def fetch(storage: Storage, files: Sequence[File], directory: Path) -> None:
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


def address(directory: Path, model: str, base_name: str, **entries: str) -> str:
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
