"""What stops `tunery up`: one sentence for a person at a terminal, never a stack trace."""

from __future__ import annotations


class CannotStart(Exception):
    """Says what was seen, what is allowed and what to do."""
