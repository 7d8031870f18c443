"""The commit whose clients, commands and data the service must keep working for, and its files."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "f69edfb"
CHECKOUT = ROOT / ".compat" / COMMIT
TESTS = ("tests", "examples", "docs/coming-from-openai.md", "pyproject.toml")
PROJECT = ("app", "worker", "migrations")


def file_at_commit(path: str) -> bytes:
    return _git("show", f"{COMMIT}:{path}")


def check_out() -> None:
    """The project's code goes into a directory of its own, so that no command run in CHECKOUT finds it."""
    for prefix, paths in (("", TESTS), ("project/", PROJECT)):
        archive = _git("archive", f"--prefix={prefix}", COMMIT, *paths)
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(CHECKOUT, filter="data")


def is_in_history() -> bool:
    return (
        subprocess.run(["git", "cat-file", "-e", f"{COMMIT}^{{commit}}"], cwd=ROOT, capture_output=True).returncode == 0
    )


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
