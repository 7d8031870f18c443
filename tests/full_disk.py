"""A small tmpfs that a test can fill. Only root can mount it; otherwise the test is skipped."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import pytest

BLOCKS_BYTES = (1 << 20, 4096)


@dataclass(frozen=True)
class SmallDisk:
    path: Path

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.path).free

    def fill(self) -> None:
        """Fill the file system to the last block."""
        with self._filler.open("ab", buffering=0) as file:
            for block_bytes in BLOCKS_BYTES:
                while write(file, block_bytes):
                    pass
        assert self.free_bytes == 0

    def empty(self) -> None:
        self._filler.unlink()


def write(file: FileIO, size_bytes: int) -> bool:
    """Append `size_bytes`; return whether there was enough space."""
    try:
        return file.write(b"." * size_bytes) == size_bytes
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[SmallDisk]:
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system, where the kernel allows it")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
