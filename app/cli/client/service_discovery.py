"""Discovery of the service URL, the API key and the database URL: from the command line, the environment, a profile, or
the data directory of `tunery up`, in this order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from app.cli.client.profiles import DEFAULT_PROFILE, find_profile, read_profiles
from app.cli.errors import AccessDenied, CliError, ServiceUnreachable, UsageError
from app.cli.local_stack.data_directory import Layout, default_data_dir

DEFAULT_BASE_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class ServiceAddress:
    base_url: str  # without /v1
    api_key: str | None
    key_source: str = "TUNERY_API_KEY"
    profile: str | None = None  # whose URL it is


def find_service(base_url: str | None, data_dir: Path | None, profile: str | None = None) -> ServiceAddress:
    """The service and its API key.

    Without a profile it is `default`, if it is stored, unless a data directory or TUNERY_ADMIN_KEY_FILE (in a
    container) is given. The key of a profile, of a data directory and of TUNERY_ADMIN_KEY_FILE is only sent to the
    service there. Raises ServiceUnreachable for the directory of a `tunery up` that is stopped or not ready, except in
    a container: another service may listen on the default port.
    """
    layout = find_layout(data_dir)
    runtime = layout.read_runtime()
    key_file = runtime is None and os.environ.get("TUNERY_ADMIN_KEY_FILE")  # in a container: its API is at the default
    environment_key = validate_key(os.environ.get("TUNERY_API_KEY", "").strip(), "TUNERY_API_KEY")
    if profile and profile != os.environ.get("TUNERY_PROFILE"):  # an option precedes the environment
        base_url = None if base_url == os.environ.get("TUNERY_BASE_URL") else base_url
        environment_key = None
    if profile is None and data_dir is None and not key_file and DEFAULT_PROFILE in read_profiles():
        profile = DEFAULT_PROFILE
    if profile:
        stored = find_profile(profile)
        profile_url = normalize_url(stored.base_url)
        base_url = normalize_url(base_url or profile_url)
        if base_url == profile_url and environment_key is None:
            return ServiceAddress(base_url, validate_key(stored.api_key, profile), f"the profile {profile}", profile)
    if runtime is None and not key_file and not base_url and layout.lock.exists():
        raise ServiceUnreachable(
            f"No `tunery up` is ready in {layout.root}. Start it, wait until it prints `ready`, or set the URL of "
            "another service with --base-url or TUNERY_BASE_URL."
        )
    local_url = normalize_url((runtime or {}).get("base_url") or DEFAULT_BASE_URL)
    requested_url = normalize_url(base_url) if base_url else local_url
    if environment_key is not None or requested_url != local_url:
        return ServiceAddress(requested_url, environment_key)
    file = Path(key_file or layout.admin_key)
    return ServiceAddress(local_url, read_key(file), str(file))


def find_layout(data_dir: Path | None) -> Layout:
    return Layout((data_dir or default_data_dir()).absolute())


def has_database(base_url: str | None, data_dir: Path | None) -> bool:
    """Whether `tunery secrets rotate` uses the database: it precedes an address only as DATABASE_URL."""
    if os.environ.get("DATABASE_URL") or base_url:
        return bool(os.environ.get("DATABASE_URL"))
    return "database_url" in (find_layout(data_dir).read_runtime() or {})


def find_database(data_dir: Path | None) -> str:
    """DATABASE_URL, or else that of `tunery up`. Raises CliError without either."""
    layout = find_layout(data_dir)
    url = os.environ.get("DATABASE_URL") or (layout.read_runtime() or {}).get("database_url")
    if not url:
        raise CliError(
            "This command needs the database of the Tunery server: DATABASE_URL is not set, and no `tunery up` runs "
            f"with the data directory {layout.root}. On the server start it, give its --data-dir, or set DATABASE_URL."
        )
    return str(url)


def find_encryption_keys(data_dir: Path | None) -> Sequence[str]:
    """TUNERY_SECRET_KEYS, or else the keys of `tunery up`; empty without either."""
    text = os.environ.get("TUNERY_SECRET_KEYS") or read_key(find_layout(data_dir).secret_keys) or ""
    return [key.strip() for key in text.split(",") if key.strip()]


def normalize_url(base_url: str) -> str:
    """Remove a trailing slash and the /v1 of the official client. Raises UsageError for an invalid URL."""
    try:
        parts = urlsplit(base_url.strip())
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise UsageError(f"{base_url!r} is not the URL of a service, such as {DEFAULT_BASE_URL}.")
    return base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def validate_key(key: str, source: str) -> str | None:
    """The key, or None for an empty text. Raises AccessDenied for one that no header can carry."""
    if not (key.isascii() and key.isprintable()):
        raise AccessDenied(f"{source} has characters that are not allowed in a key. Use the key as it was printed.")
    return key or None


def read_key(path: Path) -> str | None:
    """The text of a file with a key; None if there is none."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
