"""Discovery of the service URL, the API key and the database URL: from the command line, the environment, or the data
directory of `tunery up`, in this order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from app.cli.errors import AccessDenied, CliError, NotFoundError, UsageError
from app.cli.local_stack.data_directory import Layout, default_data_dir

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
ID_PATTERN = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class ServiceAddress:
    base_url: str  # without /v1
    api_key: str | None
    key_source: str = "TUNERY_API_KEY"


def find_service(base_url: str | None, data_dir: Path | None) -> ServiceAddress:
    """The service and its API key. The key in a data directory is only sent to the service that runs there."""
    layout = find_layout(data_dir)
    local_url = _normalize_url((layout.read_runtime() or {}).get("base_url") or DEFAULT_BASE_URL)
    requested_url = _normalize_url(base_url) if base_url else local_url
    environment_key = _validate_key(os.environ.get("TUNERY_API_KEY", "").strip())
    if environment_key is not None or requested_url != local_url:
        return ServiceAddress(requested_url, environment_key)
    return ServiceAddress(local_url, _read_key(layout.admin_key), str(layout.admin_key))


def find_layout(data_dir: Path | None) -> Layout:
    return Layout((data_dir or default_data_dir()).absolute())


def administers_over_http(base_url: str | None, data_dir: Path | None) -> bool:
    """Whether a command of operators uses HTTP: with an address and a key, unless the database is available.

    DATABASE_URL precedes an address, and an address precedes the `tunery up` of this machine.
    """
    if os.environ.get("DATABASE_URL"):
        return False
    has_key = bool(os.environ.get("TUNERY_API_KEY", "").strip())
    if base_url:
        return has_key or find_service(base_url, data_dir).api_key is None
    return has_key and "database_url" not in (find_layout(data_dir).read_runtime() or {})


def find_database(data_dir: Path | None) -> str:
    """DATABASE_URL, or else that of `tunery up`. Raises CliError without either."""
    layout = find_layout(data_dir)
    url = os.environ.get("DATABASE_URL") or (layout.read_runtime() or {}).get("database_url")
    if not url:
        raise CliError(
            "This command needs the database of the Tunery server: DATABASE_URL is not set, and no `tunery up` runs "
            f"with the data directory {layout.root}. On the server start it, give its --data-dir, or set DATABASE_URL. "
            "From elsewhere commands for projects, keys, models, retention and the audit log need TUNERY_BASE_URL, "
            "and in TUNERY_API_KEY a key with the scope admin."
        )
    return str(url)


def find_encryption_keys(data_dir: Path | None) -> Sequence[str]:
    """TUNERY_SECRET_KEYS, or else the keys of `tunery up`; empty without either."""
    text = os.environ.get("TUNERY_SECRET_KEYS") or _read_key(find_layout(data_dir).secret_keys) or ""
    return [key.strip() for key in text.split(",") if key.strip()]


def job_path(job_id: str, *rest: str) -> str:
    """The API path of a job. Raises NotFoundError for text that cannot be an id."""
    if not ID_PATTERN.fullmatch(job_id):
        raise NotFoundError(f"No such job: {job_id!r}; see `tunery jobs list`.")
    return "/".join(("fine_tuning/jobs", job_id, *rest))


def target_path(name: str) -> str:
    """The API path of a delivery target."""
    return f"delivery_targets/{quote(name, safe='')}"


def file_path(file_id: str, *rest: str) -> str:
    """The API path of a file. Raises NotFoundError for text that cannot be an id."""
    if not ID_PATTERN.fullmatch(file_id):
        raise NotFoundError(f"No such file: {file_id!r}; see `tunery files list`.")
    return "/".join(("files", file_id, *rest))


def model_path(name: str) -> str:
    """The API path of a model, whose name may contain any characters."""
    return f"models/{quote(name, safe='')}"


def _normalize_url(base_url: str) -> str:
    """Remove a trailing slash and the /v1 of the official client. Raises UsageError for an invalid URL."""
    try:
        parts = urlsplit(base_url.strip())
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise UsageError(f"{base_url!r} is not the URL of a service, such as {DEFAULT_BASE_URL}.")
    return base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def _validate_key(key: str) -> str | None:
    if not (key.isascii() and key.isprintable()):
        raise AccessDenied(
            "TUNERY_API_KEY has characters that are not allowed in a key. Set it to the key as it was printed."
        )
    return key or None


def _read_key(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
