"""Errors that prevent `tunery up` from starting. They are printed as one sentence, without a stack trace."""

from __future__ import annotations


class CannotStart(Exception):
    """The message says what was seen, what is allowed and what to do."""
