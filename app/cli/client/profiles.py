"""Profiles: services and keys that `tunery login` stores, each with a name.

~/.config/tunery/config.toml (in $XDG_CONFIG_HOME), mode 0600:

    [profiles.default]
    base_url = "https://tunery.example.com"
    api_key = "tnry_..."
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

from app.cli.errors import UsageError
from app.cli.local_stack.data_directory import write_secret

DEFAULT_PROFILE = "default"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a bare key of TOML
MAX_CONFIG_BYTES = 1 << 16


class ServiceProfile(NamedTuple):
    base_url: str
    api_key: str


def config_path() -> Path:
    directory = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(directory) / "tunery" / "config.toml"


def find_profile(name: str) -> ServiceProfile:
    """Raises UsageError if there is no such profile."""
    profiles = read_profiles()
    if name not in profiles:
        have = ", ".join(sorted(profiles)) or "none"
        raise UsageError(f"--profile {name}: no such profile; stored: {have}. Make it: tunery login --profile {name}")
    return profiles[name]


def read_profiles() -> dict[str, ServiceProfile]:
    """Raises UsageError for a file that `store_profile` would not write."""
    path = config_path()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ValueError(f"more than {MAX_CONFIG_BYTES:,} bytes")
        tables = tomllib.loads(data.decode())["profiles"]
        return {name: ServiceProfile(str(table["base_url"]), str(table["api_key"])) for name, table in tables.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a file of profiles ({type(error).__name__}: {error}). Each is a table [profiles.NAME] with "
            "base_url and api_key. Correct the file, or remove it and log in again."
        ) from None


def store_profile(name: str, profile: ServiceProfile) -> Path:
    """Add or replace a profile. Returns the path of the file."""
    path = config_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    tables = [  # a string of JSON in ASCII is one of TOML
        f"[profiles.{each}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in stored._asdict().items())
        for each, stored in sorted((read_profiles() | {name: profile}).items())
    ]
    write_secret(path, "\n".join(tables))
    return path


def check_name(name: str) -> None:
    """Raises UsageError for a name that a profile cannot have."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--profile {name!r}: a name has 1 to 64 letters, digits, - and _.")
