"""Where the service is, which key opens it, and where its database is: the command line, the environment, then what
`tunery up` left in its data directory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from app.cli.errors import CliError, Missing, NotAllowed, UsageError
from app.cli.local_stack.data_directory import Layout, default_data_dir

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Address:
    base_url: str  # without /v1
    api_key: str | None
    key_from: str = "TUNERY_API_KEY"


def find_service(base_url: str | None, data_dir: Path | None) -> Address:
    """The key in a data directory opens the service that runs there; it is never sent anywhere else."""
    layout = find_layout(data_dir)
    here = _root((layout.read_runtime() or {}).get("base_url") or DEFAULT_BASE_URL)
    asked = _root(base_url) if base_url else here
    own_key = _sendable(os.environ.get("TUNERY_API_KEY", "").strip())
    if own_key is not None or asked != here:
        return Address(asked, own_key)
    return Address(here, _read(layout.admin_key), str(layout.admin_key))


def find_layout(data_dir: Path | None) -> Layout:
    return Layout((data_dir or default_data_dir()).absolute())


def find_database(data_dir: Path | None) -> str:
    """DATABASE_URL, else the PostgreSQL that `tunery up` runs on this machine."""
    layout = find_layout(data_dir)
    url = os.environ.get("DATABASE_URL") or (layout.read_runtime() or {}).get("database_url")
    if not url:
        raise CliError(
            f"This command works on the database, and none was found: DATABASE_URL is not set, and no `tunery up` runs "
            f"on {layout.root}. Start it, give its --data-dir, or set DATABASE_URL."
        )
    return str(url)


def job_path(job_id: str, *rest: str) -> str:
    """An id is one segment of a path; what can't be one is no id of ours."""
    if not ID.fullmatch(job_id):
        raise Missing(f"There is no job {job_id!r}; `tunery jobs list` has them.")
    return "/".join(("fine_tuning/jobs", job_id, *rest))


def file_path(file_id: str, *rest: str) -> str:
    if not ID.fullmatch(file_id):
        raise Missing(f"There is no file {file_id!r}; `tunery files list` has them.")
    return "/".join(("files", file_id, *rest))


def model_path(name: str) -> str:
    """A name may hold slashes and colons, and whatever somebody mistook for one."""
    return f"models/{quote(name, safe='')}"


def _root(base_url: str) -> str:
    """People write it with and without the /v1 that the official client wants."""
    try:
        parts = urlsplit(base_url.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"{base_url!r} is no address of a service; one looks like {DEFAULT_BASE_URL}.")
    return base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def _sendable(key: str) -> str | None:
    if not (key.isascii() and key.isprintable()):
        raise NotAllowed("TUNERY_API_KEY holds characters that no key has. Set it to a key as it was printed.")
    return key or None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
