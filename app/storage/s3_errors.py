"""Errors of an S3 server as builtin errors: what was observed, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from app.storage.base import StorageError

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


def object_not_found(key: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such object", key)


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
