"""Storage in a bucket of S3 or a compatible server. Objects are visible by their rows only: nothing is renamed.

Every body is signed with its SHA-256, so the server refuses one that was altered on its way.
"""

from __future__ import annotations

import errno
import io
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.manager import TransferConfig, TransferManager

from app.domain.storage_location import S3Location
from app.storage.base import DownloadHeaders, StorageError, StoredObject, check_key, object_not_found
from app.storage.s3_responses import ObjectReader, code_of, storage_errors

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef

MIN_PART_BYTES = 5 << 20  # of S3, for every part but the last
PART_BYTES = 16 << 20
READ_BUFFER_BYTES = 1 << 20
THREADS = 8
MAX_CONNECTIONS = 50  # kept open: of downloads, which last, and of THREADS
CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS = 5, 60
ATTEMPTS = 4  # of a request that fails with a passing error, with pauses of up to 1, 2 and 4 s
CHECK_TIMEOUT_SECONDS = 3
CHECK_VALID_SECONDS = 15  # a load balancer may ask for readiness every second
URL_VALID_SECONDS = 900
NO_UPLOADS_CODES = ("NoSuchUpload", "NotImplemented")  # there is none (some servers say so), or one has just ended
PROBE_PREFIX = "probes"
DEFAULT_REGION = "us-east-1"  # of servers other than Amazon's, which ignore it


_session_lock = threading.Lock()


class CannotCopyPartsError(Exception):
    """The server does not copy an object into a part of another one (UploadPartCopy)."""


class S3Storage:
    def __init__(self, location: S3Location, staging: Path, attempts: int = ATTEMPTS) -> None:
        self.location = location
        self.staging = staging
        self.staging.mkdir(parents=True, exist_ok=True)
        self._bucket = location.bucket
        self._root = f"{location.prefix}/" if location.prefix else ""
        self._client = make_client(location, attempts=attempts)
        self._check_client = make_client(location, CHECK_TIMEOUT_SECONDS, attempts=1)
        config = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_request_concurrency=THREADS
        )
        self._transfers = TransferManager(self._client, config)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        self._url_client = (
            None if location.redirect_endpoint is None else make_client(location, endpoint=location.redirect_endpoint)
        )
        self._can_copy_parts = True  # until the server shows that it cannot: then parts go through this process
        self._checked_at = -float("inf")

    def put(self, key: str, source: Path) -> StoredObject:
        size_bytes = source.stat().st_size
        with storage_errors(key):
            self._transfers.upload(str(source), self._bucket, self._name(key)).result()
        source.unlink()
        return StoredObject(key, size_bytes)

    def compose(self, key: str, parts: Sequence[str]) -> StoredObject:
        """A multipart upload whose parts the server copies; parts below S3's minimum are joined on the local disk."""
        found = [part for part in self._pool.map(self.stat, parts) if part.size_bytes]
        size_bytes = sum(part.size_bytes for part in found)
        with storage_errors(key):
            if len(found) > 1:
                self._compose(self._at(key), group_parts(found))
            elif found:
                self._client.copy_object(**self._at(key), CopySource=self._at(found[0].key))
            else:
                self._client.put_object(**self._at(key))
        stored = self.stat(key)
        if stored.size_bytes != size_bytes:
            self.delete(key)
            raise StorageError(errno.EIO, f"the bucket stored {stored.size_bytes:,} bytes of {size_bytes:,}")
        return stored

    def open(self, key: str) -> BinaryIO:
        size_bytes = self.stat(key).size_bytes

        def open_at(position: int) -> StreamingBody:
            with storage_errors(key):
                response = self._client.get_object(**self._at(key), Range=f"bytes={position}-{size_bytes - 1}")
            return response["Body"]

        return io.BufferedReader(ObjectReader(open_at, size_bytes), READ_BUFFER_BYTES)

    def stat(self, key: str) -> StoredObject:
        with storage_errors(key):
            try:
                return StoredObject(key, self._client.head_object(**self._at(key))["ContentLength"])
            except ClientError as error:
                # A response to HEAD has only a status; another request tells why: the bucket may be missing.
                self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._name(key), MaxKeys=1)
                if code_of(error) == "404":
                    raise object_not_found(key) from None
                raise

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError), storage_errors(key):
            self._client.delete_object(**self._at(key))

    def older_than(self, prefix: str, moment: float) -> Iterator[str]:
        """By the time at which the server completed the object."""
        with storage_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._name(prefix)}/"
            )
            for found in chain.from_iterable(page.get("Contents", ()) for page in pages):
                if found["LastModified"].timestamp() < moment:
                    yield found["Key"].removeprefix(self._root)

    def delete_unfinished(self, moment: float) -> int:
        """Abort multipart uploads whose process was killed: they take space and appear in no list of objects."""
        count = 0
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._root)
        with storage_errors(self._root):
            try:
                for found in chain.from_iterable(page.get("Uploads", ()) for page in pages):
                    if found["Initiated"].timestamp() < moment:
                        count += self._abort({"Bucket": self._bucket, "Key": found["Key"]}, found["UploadId"])
            except ClientError as error:
                if code_of(error) not in NO_UPLOADS_CODES:
                    raise
        return count

    def check(self, size_bytes: int = 1) -> None:
        key = f"{PROBE_PREFIX}/{secrets.token_hex(8)}"
        if size_bytes > 1:
            self._check_space(key, size_bytes)
            return
        if time.monotonic() - self._checked_at < CHECK_VALID_SECONDS:
            return
        client, at = self._check_client, self._at(key)
        with storage_errors(key):
            client.put_object(**at, Body=b"x")
            client.head_object(**at)
            client.list_objects_v2(Bucket=self._bucket, Prefix=at["Key"], MaxKeys=1)
            client.delete_object(**at)
        self._checked_at = time.monotonic()

    def check_uploads(self) -> None:
        """Begin, abort and list multipart uploads. Raises StorageError."""
        key = f"{PROBE_PREFIX}/{secrets.token_hex(8)}"
        with storage_errors(key):
            begun = self._client.create_multipart_upload(**self._at(key))
            self._abort(self._at(key), begun["UploadId"])
        self.delete_unfinished(0.0)  # none is as old

    def download_url(self, key: str, headers: DownloadHeaders) -> str | None:
        if self._url_client is None:
            return None
        parameters = {
            **self._at(key),
            "ResponseContentType": headers.content_type,
            "ResponseContentDisposition": headers.content_disposition,
        }
        with storage_errors(key):
            return self._url_client.generate_presigned_url("get_object", parameters, URL_VALID_SECONDS)

    def _name(self, key: str) -> str:
        """The key in the bucket."""
        return self._root + check_key(key)

    def _at(self, key: str) -> Any:
        """The parameters of requests that name an object."""
        return {"Bucket": self._bucket, "Key": self._name(key)}

    def _abort(self, at: Any, upload_id: str) -> bool:
        """False for an upload that has ended by now."""
        try:
            self._client.abort_multipart_upload(**at, UploadId=upload_id)
        except self._client.exceptions.NoSuchUpload:
            return False
        return True

    def _check_space(self, key: str, size_bytes: int) -> None:
        """Store an object of zeros: a bucket tells its free space in no other way."""
        with tempfile.NamedTemporaryFile(dir=self.staging, delete=False) as file:
            file.truncate(size_bytes)
        try:
            self.put(key, Path(file.name))
        finally:
            Path(file.name).unlink(missing_ok=True)
        self.delete(key)

    def _compose(self, at: Any, groups: Sequence[Sequence[StoredObject]]) -> None:
        try:
            self._compose_once(at, groups)
        except CannotCopyPartsError:
            self._can_copy_parts = False
            self._compose_once(at, groups)

    def _compose_once(self, at: Any, groups: Sequence[Sequence[StoredObject]]) -> None:
        upload_id = self._client.create_multipart_upload(**at)["UploadId"]
        try:
            numbers = range(1, len(groups) + 1)
            parts = list(self._pool.map(partial(self._store_part, at, upload_id), numbers, groups))
            self._client.complete_multipart_upload(**at, UploadId=upload_id, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(ClientError, BotoCoreError):
                self._client.abort_multipart_upload(**at, UploadId=upload_id)
            raise

    def _store_part(self, at: Any, upload_id: str, number: int, group: Sequence[StoredObject]) -> CompletedPartTypeDef:
        if len(group) == 1 and self._can_copy_parts:
            return self._copy_part(at, upload_id, number, group[0])
        with tempfile.TemporaryFile(dir=self.staging) as joined:
            for part in group:
                with self.open(part.key) as source:
                    shutil.copyfileobj(source, joined, READ_BUFFER_BYTES)
            joined.seek(0)
            stored = self._client.upload_part(**at, UploadId=upload_id, PartNumber=number, Body=joined)
        return {"PartNumber": number, "ETag": stored["ETag"]}

    def _copy_part(self, at: Any, upload_id: str, number: int, part: StoredObject) -> CompletedPartTypeDef:
        """Raises CannotCopyPartsError for a server without this operation, which may also store an empty part."""
        try:
            copied = self._client.upload_part_copy(
                **at,
                UploadId=upload_id,
                PartNumber=number,
                CopySource=self._at(part.key),
            )
        except ClientError as error:
            if code_of(error) == "NotImplemented":
                raise CannotCopyPartsError from error
            raise
        etag = copied.get("CopyPartResult", {}).get("ETag")
        if etag is None:
            raise CannotCopyPartsError
        return {"PartNumber": number, "ETag": etag}


def make_client(
    location: S3Location,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    attempts: int = ATTEMPTS,
    endpoint: str | None = None,
) -> S3Client:
    """A client of the bucket's server, or of another `endpoint`; it may be used by several threads."""
    is_custom = location.endpoint is not None
    config = client_config(
        has_endpoint=is_custom,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=read_timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=MAX_CONNECTIONS,
    )
    with _session_lock:  # a session is not thread-safe, its clients are
        return _session().client(
            "s3",
            endpoint_url=endpoint or location.endpoint,
            region_name=location.region or (DEFAULT_REGION if is_custom else None),
            aws_access_key_id=location.access_key_id,
            aws_secret_access_key=location.secret_access_key,
            config=config,
        )


def client_config(*, has_endpoint: bool, **options: Any) -> Config:
    """The options of every client of a bucket, with which compatible servers work, too."""
    return Config(
        signature_version="s3v4",
        # The signature has the SHA-256 of the body. Boto3's own checksums are unknown to many compatible servers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True, "addressing_style": "path" if has_endpoint else "auto"},
        **options,
    )


@cache
def _session() -> boto3.session.Session:
    """One per process, as it reads megabytes of descriptions for its first client."""
    return boto3.session.Session()


def group_parts(parts: Sequence[StoredObject]) -> list[list[StoredObject]]:
    """Consecutive groups of at least MIN_PART_BYTES each, except the last one, with as few objects as possible."""
    groups: list[list[StoredObject]] = []
    size_bytes = MIN_PART_BYTES
    for part in parts:
        if size_bytes >= MIN_PART_BYTES:
            groups.append([])
            size_bytes = 0
        groups[-1].append(part)
        size_bytes += part.size_bytes
    return groups
