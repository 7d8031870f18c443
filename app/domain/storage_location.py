"""Where objects are stored: a directory, or a bucket of S3 or a compatible server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
URL_FORMS = "file:///DIRECTORY or s3://BUCKET or s3://BUCKET/PREFIX, of letters, digits, dots, dashes and underscores"


@dataclass(frozen=True)
class S3Location:
    """A prefix in a bucket. Without credentials boto3 looks for them, as every AWS client does."""

    bucket: str
    prefix: str = ""  # without slashes at its ends
    endpoint: str | None = None  # of a server other than Amazon's
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    redirect_endpoint: str | None = None  # the address of the server for clients; None: no redirects


def parse_storage_url(url: str) -> Path | tuple[str, str]:
    """The directory of a `file:` URL, or bucket and prefix of an `s3:` URL. Raises ValueError."""
    parts = urlsplit(url)
    has_extras = parts.query or parts.fragment
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and not has_extras:
        return Path(unquote(parts.path))
    prefix = parts.path.strip("/")
    is_s3 = parts.scheme == "s3" and not has_extras and BUCKET.fullmatch(parts.netloc)
    if is_s3 and (not prefix or KEY.fullmatch(prefix)):
        return parts.netloc, prefix
    raise ValueError(f"{url!r} is no storage URL; allowed: {URL_FORMS}")
