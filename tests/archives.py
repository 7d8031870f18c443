"""The archive of an adapter as Python's tarfile writes it: the oracle for what the service assembles."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def tar_bytes(contents: Mapping[str, bytes], prefix: str = "adapter") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(contents.items()):
            info = tarfile.TarInfo(f"{prefix}/{name}")
            info.size, info.mode, info.mtime = len(content), 0o644, 0
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_of(directory: Path, prefix: str = "adapter") -> bytes:
    return tar_bytes({path.name: path.read_bytes() for path in directory.iterdir()}, prefix)
