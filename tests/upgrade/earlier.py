"""The commit whose clients, commands and data the service must keep working for, and its files."""

from __future__ import annotations

from tools import checkout
from tools.checkout import ROOT

COMMIT = "f69edfb"
CHECKOUT = ROOT / ".compat" / COMMIT
TESTS = ("tests", "examples", "docs/coming-from-openai.md", "pyproject.toml")
PROJECT = ("app", "worker", "migrations")


def check_out() -> None:
    """The project's code goes into a directory of its own, so that no command run in CHECKOUT finds it."""
    checkout.check_out(COMMIT, CHECKOUT, *TESTS)
    checkout.check_out(COMMIT, CHECKOUT / "project", *PROJECT)
