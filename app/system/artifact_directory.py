"""Artifact directories with a manifest; directories of snapshots and checkpoints, and the newest snapshot that
verifies; and the archive of an adapter: an uncompressed tar whose bytes depend only on names and contents of its
files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from app.system.files import copy_and_hash, sync

MANIFEST = "MANIFEST.json"
SEAL = "seal"  # key of a manifest: the SHA-256 of its other entries
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
STEP_PREFIX = "step-"  # of the names of snapshot and checkpoint directories

Candidate = TypeVar("Candidate")
Opened = TypeVar("Opened")
PREFIX = "adapter"  # the directory in the archive
TAR_CHUNK_BYTES = 1 << 20


class ManifestMismatch(ValueError):
    """A directory differs from its manifest; the message names each file and its problem."""


def sha256_file(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return copy_and_hash(file).sha256


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """{relative name: {"bytes": size, "sha256": hex}} of every file below `directory` except the manifest, sorted."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(directory).as_posix(): _describe(path) for path in paths}


def write_manifest(directory: Path, entries: Mapping[str, Any]) -> str:
    """Write MANIFEST.json with `entries` and all files, flush everything to disk, return the manifest's SHA-256."""
    text = _write(directory, {**entries, "files": describe_files(directory)})
    for path in (*directory.rglob("*"), directory):
        sync(path)
    return hashlib.sha256(text.encode()).hexdigest()


def amend_manifest(directory: Path, entries: Mapping[str, Any], changed: Iterable[str]) -> None:
    """Add `entries` to the manifest, and what the files `changed` have become; others are not read again, as a merged
    model has gigabytes. Raises ManifestMismatch."""
    manifest = read_manifest(directory)
    manifest.pop(SEAL, None)
    files = manifest["files"] | {name: _describe(directory / name) for name in changed}
    _write(directory, {**manifest, **entries, "files": files})
    for name in (*changed, MANIFEST):
        sync(directory / name)


def publish(staged: Path, destination: Path) -> None:
    """Rename a complete directory into place: after a crash it exists completely or not at all."""
    os.rename(staged, destination)
    sync(destination.parent)


@contextmanager
def published(destination: Path) -> Iterator[Path]:
    """Yield a temporary directory to write into; flush it to disk and publish it at the end, remove it after an error.

    Raises OSError.
    """
    temporary = destination.with_name(f".{destination.name}.staged")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a crash
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        publish(temporary, destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(directory: Path, *, sealed: bool = False) -> dict[str, Any]:
    """Raises ManifestMismatch if the manifest is missing, unreadable, altered, or (`sealed`) without a seal."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error  # the message of an OSError contains the local path
        raise ManifestMismatch(f"{directory.name}: MANIFEST.json is missing or unreadable ({reason})") from error
    if (sealed or SEAL in manifest) and manifest.get(SEAL) != _seal(manifest):
        raise ManifestMismatch(f"{directory.name}: MANIFEST.json was altered (its seal differs)")
    return dict(manifest)


def verify(directory: Path, *, sealed: bool = False) -> dict[str, Any]:
    """Read the manifest, and check the size and SHA-256 of every file that it lists.

    Raises ManifestMismatch that names each missing, truncated, altered or unexpected file.
    """
    manifest = read_manifest(directory, sealed=sealed)
    actual = describe_files(directory)
    problems = [_difference(name, expected, actual.get(name)) for name, expected in manifest["files"].items()]
    problems += [f"{name} is not in the manifest" for name in actual.keys() - manifest["files"].keys()]
    if messages := [problem for problem in problems if problem]:
        raise ManifestMismatch(f"{directory.name}: " + "; ".join(messages))
    return manifest


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _write(directory: Path, body: Mapping[str, Any]) -> str:
    """Write a manifest with its seal; returns its text."""
    text = _as_text({**body, SEAL: _seal(body)})
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return text


def _as_text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _seal(body: Mapping[str, Any]) -> str:
    """The SHA-256 of the other entries: a flipped bit in a digit or a name leaves valid JSON."""
    others = {name: value for name, value in body.items() if name != SEAL}
    return hashlib.sha256(_as_text(others).encode("utf-8", "surrogatepass")).hexdigest()


def _difference(name: str, expected: Mapping[str, Any], actual: Mapping[str, Any] | None) -> str | None:
    if actual is None:
        return f"{name} is missing"
    if actual["bytes"] != expected["bytes"]:
        return f"{name} has {actual['bytes']} bytes instead of {expected['bytes']}"
    if actual["sha256"] != expected["sha256"]:
        return f"{name} was altered (its SHA-256 differs)"
    return None


def newest_valid(
    newest_first: Iterable[Candidate], open_candidate: Callable[[Candidate], Opened]
) -> tuple[Opened | None, list[str]]:
    """The first candidate that opens without a ManifestMismatch, and the problems of the candidates before it."""
    problems: list[str] = []
    for candidate in newest_first:
        try:
            return open_candidate(candidate), problems
        except ManifestMismatch as error:
            problems.append(str(error))
    return None, problems


def snapshot_directories(directory: Path) -> list[Path] | None:
    """The snapshots in `directory`, newest first; None if `directory` is itself a snapshot."""
    if directory.name.startswith(STEP_PREFIX) or (directory / MANIFEST).exists():
        return None
    return step_directories(directory)[::-1]


def step_directories(parent: Path) -> list[Path]:
    """The directories step-000001, ..., step-1000000 in `parent`, in numerical order."""
    return sorted(
        (path for path in parent.glob(f"{STEP_PREFIX}*") if path.is_dir()), key=lambda path: (len(path.name), path.name)
    )


def tar_frames(members: Sequence[tuple[str, int]]) -> list[bytes]:
    """What stands before each (name, size in bytes) and after the last one: n + 1 texts, headers and padding."""
    frames, padding, position = [], b"", 0
    for name, size_bytes in members:
        info = tarfile.TarInfo(f"{PREFIX}/{name}")
        info.size, info.mode, info.mtime = size_bytes, 0o644, 0
        frames.append(padding + info.tobuf(tarfile.PAX_FORMAT))
        position += len(frames[-1]) + size_bytes
        padding = bytes(-size_bytes % tarfile.BLOCKSIZE)
    end = padding + bytes(2 * tarfile.BLOCKSIZE)
    return [*frames, end + bytes(-(position + len(end)) % tarfile.RECORDSIZE)]


def describe_archive(directory: Path) -> tuple[int, str]:
    """(size in bytes, SHA-256) of the archive of a directory of plain files, without writing it. Raises OSError."""
    paths = sorted(directory.iterdir())
    frames = tar_frames([(path.name, path.stat().st_size) for path in paths])
    digest, size_bytes = hashlib.sha256(), 0
    for frame, path in zip(frames, [*paths, None], strict=True):
        digest.update(frame)
        size_bytes += len(frame)
        if path is not None:
            size_bytes += path.stat().st_size
            with path.open("rb") as file:
                while chunk := file.read(TAR_CHUNK_BYTES):
                    digest.update(chunk)
    return size_bytes, digest.hexdigest()
