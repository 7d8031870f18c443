"""What a path must be for a Unix socket to lie under it. Refused before anything is created.

A socket elsewhere (the temporary folder, say) would escape the data directory and its permissions, so a long path is a
refusal and not a detour.
"""

from __future__ import annotations

import os
from pathlib import Path

from app.cli.local_stack.errors import CannotStart

SOCKET_PATH_LIMIT = 107 if os.uname().sysname == "Linux" else 103  # sun_path less its NUL


def refuse_long_socket(socket: Path, directory: Path) -> None:
    excess = len(os.fsencode(socket)) - SOCKET_PATH_LIMIT
    if excess > 0:
        raise CannotStart(
            f"The path {directory} is too long by {excess} bytes: a Unix socket lies under it, whose path has at most "
            f"{SOCKET_PATH_LIMIT}. Choose a shorter --data-dir."
        )


def refuse_unusual_characters(directory: Path) -> None:
    unusual = sorted(set(str(directory)) & set(",:"))
    if unusual:
        raise CannotStart(
            f"The path {directory} has a {unusual[0]!r} in it, which separates hosts in a PostgreSQL address. "
            "Choose a --data-dir without."
        )
