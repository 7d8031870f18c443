"""The files of an earlier commit, from the history of this clone."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOW_TO_FETCH = "a shallow clone lacks earlier commits: git fetch --unshallow"


def is_in_history(commit: str) -> bool:
    found = subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True)
    return found.returncode == 0


def check_out(commit: str, directory: Path, *paths: str) -> None:
    """Write these files and folders of the commit, or all, into `directory`."""
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit, *paths))) as files:
        files.extractall(directory, filter="data")


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
