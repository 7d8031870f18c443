"""Errors of the commands, with the exit code of each.

    CliError                1  the job failed, or the server or the network did
    +- UsageError           2  the command or its values must change
    +- NotFoundError        3  no such job, file, model or key
    +- AccessDenied         4  the API key is missing, invalid, or lacks a permission

130 is a Ctrl-C. Every message says what was seen, what is allowed and what to do.
"""

from __future__ import annotations

INTERRUPTED = 130


class CliError(Exception):
    exit_code = 1
    code: str | None = None  # of the server's error
    param: str | None = None


class UsageError(CliError):
    exit_code = 2


class TooManyRequests(UsageError):
    """A limit of the API key or its project. The same request may succeed later."""


class NotFoundError(CliError):
    exit_code = 3


class AccessDenied(CliError):
    exit_code = 4


class ServiceUnreachable(CliError):
    """The service does not respond, or the connection was lost. A retry may succeed."""
