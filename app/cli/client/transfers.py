"""Uploads and downloads: files, the local files that a request refers to, and the archive of an adapter.

A small file is uploaded in one request, a large one as a resumable upload. Files that a request refers to are found
among the stored ones, or uploaded. An archive is downloaded with resume, verified, unpacked by its manifest, and
renamed into place. It is not trusted: only files of the manifest are extracted, each within the directory;
each file must have the SHA-256 of the manifest, and the archive the SHA-256 that the server returned.
"""

from __future__ import annotations

import secrets
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from app.cli.client.references import FILE, LAST, file_path, resolve_file
from app.cli.errors import CliError, ServiceUnreachable, UsageError
from app.cli.output.console import print_error, print_note
from app.cli.output.progress import bytes_bar, bytes_progress
from app.domain.files import EXPIRES_SECONDS, MIME_TYPE
from app.system.artifact_directory import MANIFEST, ManifestMismatch, publish, read_manifest, sha256_file, verify
from app.system.files import sync

if TYPE_CHECKING:
    from app.cli.client.http import Client

MIN_RESUMABLE_BYTES = 64 << 20  # a smaller file is cheaper to send again than to resume
UPLOAD_ATTEMPTS = 6  # in a row without progress
ATTEMPT_PAUSE_SECONDS = 1.0

Json = dict[str, Any]
BLOCK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 16 << 20
DOWNLOAD_ATTEMPTS = 5  # each continues after the bytes that the last one received
FILE_PARAMETERS = ("training_file", "validation_file")
PURPOSE = "fine-tune"
TEMPORARY = {"anchor": "created_at", "seconds": EXPIRES_SECONDS[0]}


class RemoteFile(NamedTuple):
    """What the API serves at `path`, with its expected size and digest."""

    path: str
    size_bytes: int
    sha256: str


def upload_with_progress(
    client: Client,
    path: Path,
    purpose: str = PURPOSE,
    upload_id: str | None = None,
    expires_after: Json | None = None,
    fields: Json | None = None,
) -> Json:
    """Upload a file with a progress bar and return its object; `upload_id` resumes an interrupted upload.

    With `fields`, those of a preparation, it is sent in one request of any size. Raises UsageError if it is unreadable.
    """
    require_readable(path)
    size_bytes = path.stat().st_size
    with bytes_progress() as bar, bar.open(path, "rb", description=f"uploading {path.name}") as file:
        if fields or (upload_id is None and size_bytes < MIN_RESUMABLE_BYTES):
            return client.upload(file, path.name, purpose, expires_after, fields or {}, size_bytes)
        if upload_id:
            upload = client.get(f"uploads/{upload_id}")
            if upload["bytes"] != size_bytes:
                raise UsageError(
                    f"{upload_id} is an upload of {upload['bytes']:,} bytes, but this file has {size_bytes:,}."
                )
        else:
            body = {"filename": path.name, "purpose": purpose, "bytes": size_bytes, "mime_type": MIME_TYPE}
            upload = client.post("uploads", body | {"expires_after": expires_after})
        try:
            upload = _send_with_retries(client, file, upload["id"], size_bytes)
        except (ServiceUnreachable, KeyboardInterrupt):
            print_error(
                f"The received part is kept until the upload expires. "
                f"Resume it with: tunery files upload {path} --resume {upload['id']}"
            )
            raise
    return dict(upload["file"])


def _send_with_retries(client: Client, file: BinaryIO, upload_id: str, size_bytes: int) -> Json:
    """Send the rest of the file, again after each lost connection, up to UPLOAD_ATTEMPTS without progress."""
    path, failures, furthest = f"uploads/{upload_id}", 0, -1
    while True:
        try:
            upload = client.get(path)
            offset = upload["received_bytes"]
            failures, furthest = 0 if offset > furthest else failures, max(offset, furthest)
            if offset < size_bytes:
                upload = client.put_file(f"{path}/content", file, offset, size_bytes)
            elif upload["status"] != "completed":
                upload = client.complete_upload(f"{path}/complete", size_bytes)
            break
        except ServiceUnreachable:
            failures += 1
            if failures == UPLOAD_ATTEMPTS:
                raise
            time.sleep(failures * ATTEMPT_PAUSE_SECONDS)
    if upload["status"] != "completed":
        raise CliError(f"{upload_id} is {upload['status']} after its last byte.")
    return upload


def prepare_place(path: Path, option: str = "-o") -> None:
    """Make the parent directory of a download. Raises UsageError if there is something at its path."""
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} already exists. Choose another path with {option}, or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)


def download_file(client: Client, file: Json, part: Path) -> Path:
    """Download a file of the API to `part`, as `download_verified` does."""
    source = RemoteFile(file_path(file["id"], "content"), file["bytes"], file["sha256"])
    return download_verified(client, source, part, f"downloading {file['filename']}")


def download_verified(client: Client, source: RemoteFile, part: Path, title: str) -> Path:
    """Download to `part`, after the bytes that it already has.

    Raises ServiceUnreachable after DOWNLOAD_ATTEMPTS. Raises CorruptDownload and deletes `part` if its size or SHA-256
    is wrong; the next download starts over.
    """
    part.touch()
    with bytes_bar(title, source.size_bytes, part.stat().st_size) as advance:
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            if part.stat().st_size >= source.size_bytes:
                break
            try:
                _download_rest(client, source.path, part, advance)
            except ServiceUnreachable:
                if attempt == DOWNLOAD_ATTEMPTS:
                    raise
                time.sleep(attempt * ATTEMPT_PAUSE_SECONDS)
    size_bytes, sha256 = part.stat().st_size, sha256_file(part)
    if (size_bytes, sha256) != (source.size_bytes, source.sha256):
        part.unlink()
        raise CorruptDownload(
            f"The download is corrupt: {size_bytes} bytes with SHA-256 {sha256} "
            f"instead of {source.size_bytes} bytes with {source.sha256}. It was deleted; run the command again."
        )
    return part


def require_readable(path: Path) -> None:
    """Raises UsageError if `path` is not a file that this user can read."""
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a file." if path.exists() else f"No such file: {path}.")
        path.open("rb").close()
    except PermissionError:
        raise UsageError(f"This user cannot read {path}.") from None


class CorruptDownload(CliError):
    """The downloaded bytes do not match the size, the SHA-256 or the manifest that the server returned."""


def unpack(archive: Path, destination: Path) -> dict[str, Any]:
    """Unpack into a temporary directory, verify every file, rename it to `destination`, and return the manifest."""
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.new")
    temporary.mkdir(parents=True)  # not by `tempfile`, which would set narrower permissions
    try:
        _extract(archive, temporary)
        manifest = verify(temporary)
        for path in temporary.rglob("*"):
            sync(path)
        publish(temporary, destination)
    except (tarfile.TarError, ManifestMismatch) as error:
        raise CorruptDownload(f"{archive.name} is not a valid adapter archive: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _download_rest(client: Client, path: str, partial_path: Path, on_bytes: Callable[[int], None]) -> None:
    existing_bytes = partial_path.stat().st_size
    with client.download(path, existing_bytes) as response:
        starts_over = existing_bytes and response.status_code != 206
        if starts_over:
            on_bytes(-existing_bytes)
        with partial_path.open("wb" if starts_over else "ab") as file:
            for block in response.iter_bytes(BLOCK_BYTES):
                file.write(block)
                on_bytes(len(block))


def _extract(archive: Path, directory: Path) -> None:
    """Extract the manifest and the files that it names, which must stay inside `directory`."""
    with tarfile.open(archive, "r:") as tar:
        members = {member.name: member for member in tar if member.isreg()}
        manifests = [name for name in members if PurePosixPath(name).name == MANIFEST]
        if not manifests:
            raise ManifestMismatch(f"it has no {MANIFEST}")
        root = min(manifests, key=lambda name: name.count("/")).removesuffix(MANIFEST)  # of the outermost one
        if members[root + MANIFEST].size > MAX_MANIFEST_BYTES:
            raise ManifestMismatch(f"{MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
        _extract_file(tar, members[root + MANIFEST], directory, MANIFEST)
        for name in read_manifest(directory)["files"]:
            if name and root + name in members:  # `verify` names the others
                _extract_file(tar, members[root + name], directory, name)


def _extract_file(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path, name: str) -> None:
    path = directory / name
    if "\0" in name or not path.resolve().is_relative_to(directory.resolve()):
        raise ManifestMismatch(f"{MANIFEST} names {name!r}, which is outside the directory")
    source = tar.extractfile(member)
    assert source is not None, "a regular file"
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file)


def is_path(value: str | None) -> bool:
    """Whether `value` is a local path, and not the id or name of a stored file."""
    return value not in (None, LAST) and not value.startswith(FILE.prefix) and Path(value).exists()


@contextmanager
def uploaded_files(client: Client, body: dict[str, Any], keep: bool = True) -> Iterator[dict[str, Any]]:
    """Yield a request body with file ids in place of its local files; the block sends it.

    A stored file with the same SHA-256 is used, any other one is uploaded. Without `keep` the uploaded files are
    deleted afterwards, and expire by themselves if this process is killed. They are also deleted if the block fails,
    except after a lost connection, when the server may have processed the request.
    """
    values = {name: body[name] for name in FILE_PARAMETERS if body.get(name) and isinstance(body[name], str)}
    paths = {name: Path(value) for name, value in values.items() if is_path(value)}
    ids = {name: resolve_file(client, value, purpose=PURPOSE) for name, value in values.items() if name not in paths}
    uploaded_ids: list[str] = []
    with ExitStack() as deletions:
        for name, path in paths.items():
            stored_id = find_stored(client, path)
            if stored_id is None:
                stored_id = str(upload_with_progress(client, path, expires_after=None if keep else TEMPORARY)["id"])
                uploaded_ids.append(stored_id)
                deletions.callback(_delete_uploaded, client, stored_id)
            ids[name] = stored_id
        try:
            yield body | ids
        except ServiceUnreachable:
            if keep and uploaded_ids:
                deletions.pop_all()
                kept = ", ".join(uploaded_ids)
                print_note(f"The server may have processed the request, so the uploaded files are kept: {kept}.")
            raise
        if keep:
            deletions.pop_all()


def find_stored(
    client: Client, path: Path, is_usable: Callable[[Json], bool] = lambda _: True, sha256: str | None = None
) -> str | None:
    """The newest usable training file with the bytes of `path`, which does not expire. Raises UsageError."""
    require_readable(path)
    sha256 = sha256 or sha256_file(path)
    for file in client.pages(FILE.path, FILE.page_size, purpose=PURPOSE):
        if file["sha256"] == sha256 and file["expires_at"] is None and is_usable(file):
            print_note(f"Uses the stored file {file['id']}, which has the SHA-256 of {path}, without an upload.")
            return str(file["id"])
    return None


def _delete_uploaded(client: Client, file_id: str) -> None:
    """Delete a file that the command has uploaded, and print a note."""
    try:
        client.delete(file_path(file_id))
    except CliError as error:
        print_note(
            f"Could not delete the uploaded file {file_id}: {error} Delete it with `tunery files delete {file_id}`."
        )
    else:
        print_note(f"Deleted the uploaded file {file_id}.")
