"""Responses of an S3 server: errors as builtin errors, with what was observed and what to do, and a seekable reader."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from app.storage.base import SeekableReader, StorageError, object_not_found

if TYPE_CHECKING:
    from botocore.response import StreamingBody

# S3 itself is never full. These are the codes of MinIO, Ceph and others; some answer 507 with a code of their own.
FULL_CODES = frozenset(
    {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage", "OverQuota"}
)
INSUFFICIENT_STORAGE = 507
CREDENTIAL_CODES = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
)
CLOCK_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
OVERLOAD_CODES = frozenset({"SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException"})
MISSING_KEY_CODES = frozenset({"NoSuchKey", "404"})
MAX_BREAKS = 5  # consecutive broken responses without a byte between them


@contextmanager
def storage_errors(key: str) -> Iterator[None]:
    """Raise FileNotFoundError with the key for a missing object, StorageError for every other error of the client."""
    try:
        yield
    except ClientError as error:
        if code_of(error) in MISSING_KEY_CODES:
            raise object_not_found(key) from None
        raise _answered(error) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        text = (
            "the service has no credentials for the bucket: set TUNERY_STORAGE_ACCESS_KEY_ID and "
            "TUNERY_STORAGE_SECRET_ACCESS_KEY, or provide them as to any AWS client"
        )
        raise StorageError(errno.EACCES, text) from error
    except BotoCoreError as error:
        text = f"the bucket's server does not answer ({type(error).__name__}): its operator must check that it runs"
        raise StorageError(errno.EIO, text) from error


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


class ObjectReader(SeekableReader):
    """Reads from `open_at(position)`, which opens a response that begins there, and again where one broke off."""

    def __init__(self, open_at: Callable[[int], StreamingBody], size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._open_at = open_at
        self._body: StreamingBody | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        before = self._position
        if super().seek(offset, whence) != before:
            self._drop()
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read at most `len(buffer)` bytes. Raises what `open_at` raises, StorageError for responses that end early."""
        if self._position >= self._size_bytes or not len(buffer):
            return 0
        for _ in range(MAX_BREAKS):
            try:
                self._body = self._body or self._open_at(self._position)
                count = self._body.readinto(buffer)  # type: ignore[arg-type]  # the stubs ask for a file
            except BotoCoreError:
                count = 0
            if count:
                self._position += count
                return count
            self._drop()  # a client that reads slowly, or a restarted server: the connection was closed
        text = f"the response of the bucket's server ends at byte {self._position:,} of {self._size_bytes:,}"
        raise StorageError(errno.EIO, text)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _answered(error: ClientError) -> StorageError:
    """The error that the server has answered with."""
    code, status = code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in FULL_CODES or status == INSUFFICIENT_STORAGE:
        text = f"the bucket is full ({code}): delete files that are not needed, or ask its operator for more space"
        return StorageError(errno.ENOSPC, text)
    if code in CLOCK_CODES:
        text = f"the bucket refuses the time of this machine ({code}): its clock is wrong, synchronize it (NTP)"
    elif code in CREDENTIAL_CODES:
        text = f"the bucket refuses the service's credentials ({code}): the operator must set valid ones"
    elif code == "NoSuchBucket":
        text = f"the bucket does not exist ({code}): create it, or correct TUNERY_STORAGE_URL"
    elif code in OVERLOAD_CODES or status == 429:
        text = f"the bucket's server is overloaded ({code}): it must get fewer requests or more capacity"
    elif status in (401, 403):
        advice = "allow the service to read, write, delete and list its objects and multipart uploads"
        text = f"the bucket refuses access ({code}): {advice}"
        return StorageError(errno.EACCES, text)
    else:
        text = f"the bucket's server has an error ({code or status}): its operator must check its log"
    return StorageError(errno.EIO, text)
