"""Checks of the path of a Unix socket, before anything is created.

A socket outside of the data directory would not have its permissions, so a path that is too long is an error.
"""

from __future__ import annotations

import os
from pathlib import Path

from app.cli.local_stack.errors import CannotStart

MAX_SOCKET_PATH_BYTES = 107 if os.uname().sysname == "Linux" else 103  # sun_path less its NUL


def check_socket_length(socket: Path, directory: Path) -> None:
    excess = len(os.fsencode(socket)) - MAX_SOCKET_PATH_BYTES
    if excess > 0:
        raise CannotStart(
            f"The path {directory} is too long by {excess} bytes: it contains a Unix socket, whose path has at most "
            f"{MAX_SOCKET_PATH_BYTES} bytes. Choose a shorter --data-dir."
        )


def check_path_characters(directory: Path) -> None:
    separators = sorted(set(str(directory)) & set(",:"))
    if separators:
        raise CannotStart(
            f"The path {directory} contains {separators[0]!r}, which separates hosts in a PostgreSQL address. "
            "Choose a --data-dir without it."
        )
