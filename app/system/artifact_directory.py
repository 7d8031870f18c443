"""What a run leaves behind: directories with a manifest, and one deterministic archive of them.

A directory counts only with its MANIFEST.json, which names every other file with size and SHA-256. It is written last,
so a crash leaves a directory without one, never a wrong one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
SEAL = "seal"  # in a manifest: the SHA-256 of the rest of it
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


class ManifestMismatch(ValueError):
    """A directory is not what its manifest says; the message names each file and what is wrong with it."""


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """{relative name: {"bytes": size, "sha256": hex}} of every file below `directory` but the manifest, sorted."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }


def write_manifest(directory: Path, about: Mapping[str, Any]) -> str:
    """Write MANIFEST.json over what lies in `directory`, flush everything to disk, return the manifest's SHA-256."""
    body = {**about, "files": describe_files(directory)}
    text = _as_text({**body, SEAL: _seal(body)})
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    for path in directory.rglob("*"):
        _fsync(path)
    _fsync(directory)
    return hashlib.sha256(text.encode()).hexdigest()


def publish(staged: Path, destination: Path) -> None:
    """Rename a complete directory into place; after a crash it is there whole or not at all."""
    os.rename(staged, destination)
    _fsync(destination.parent)


def read_manifest(directory: Path, *, sealed: bool = False) -> dict[str, Any]:
    """Raises ManifestMismatch for one that is missing, unreadable or altered; `sealed`: also for one without a seal."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error  # an OSError's own text has the machine's path
        raise ManifestMismatch(f"{directory.name}: MANIFEST.json is missing or unreadable ({why})") from error
    if (sealed or SEAL in manifest) and manifest.get(SEAL) != _seal(manifest):
        raise ManifestMismatch(f"{directory.name}: MANIFEST.json was altered (its seal differs)")
    return dict(manifest)


def verify(directory: Path, *, sealed: bool = False) -> dict[str, Any]:
    """Return the manifest of a directory whose every file has the size and SHA-256 it names.

    Raises ManifestMismatch naming each file that is missing, truncated, altered or unexpected.
    """
    manifest = read_manifest(directory, sealed=sealed)
    found = describe_files(directory)
    wrong = [_difference(name, want, found.get(name)) for name, want in manifest["files"].items()]
    wrong += [f"{name} is not in the manifest" for name in found.keys() - manifest["files"].keys()]
    problems = [problem for problem in wrong if problem]
    if problems:
        raise ManifestMismatch(f"{directory.name}: " + "; ".join(problems))
    return manifest


def write_archive(directory: Path, destination: Path, prefix: str) -> None:
    """Pack `directory` as an uncompressed tar that depends on nothing but the files' names and bytes.

    Uncompressed: float weights do not shrink, and the same input gives the same bytes with every zlib.
    """
    with (
        destination.open("wb") as raw,
        tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            info = tarfile.TarInfo(f"{prefix}/{path.relative_to(directory).as_posix()}")
            info.size, info.mode, info.mtime = path.stat().st_size, 0o644, 0
            with path.open("rb") as file:
                archive.addfile(info, file)
    _fsync(destination)


def _as_text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _seal(body: Mapping[str, Any]) -> str:
    """Over the parsed values: one flipped bit in a digit or a name leaves JSON that reads as well as before."""
    rest = {name: value for name, value in body.items() if name != SEAL}
    return hashlib.sha256(_as_text(rest).encode("utf-8", "surrogatepass")).hexdigest()


def _difference(name: str, want: Mapping[str, Any], got: Mapping[str, Any] | None) -> str | None:
    if got is None:
        return f"{name} is missing"
    if got["bytes"] != want["bytes"]:
        return f"{name} has {got['bytes']} bytes instead of {want['bytes']}"
    if got["sha256"] != want["sha256"]:
        return f"{name} was altered (its SHA-256 differs)"
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
