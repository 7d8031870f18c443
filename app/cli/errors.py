"""Errors and exit codes of the commands. Every message says what was seen, what is allowed and what to do."""

from __future__ import annotations

from enum import IntEnum


class CommandExit(IntEnum):
    """The exit codes of all commands."""

    FAILED = 1  # the job failed, or the server or the network did; also a check that found a problem
    USAGE = 2  # the command or its values must change
    NOT_FOUND = 3  # no such job, file, model, key or project
    ACCESS_DENIED = 4  # the API key is missing, invalid, or lacks a permission
    CANCELLED = 5  # of `jobs watch` and `jobs wait --exit-status`
    INTERRUPTED = 130  # Ctrl-C


class CliError(Exception):
    exit_code = CommandExit.FAILED
    code: str | None = None  # of the server's error
    param: str | None = None


class UsageError(CliError):
    exit_code = CommandExit.USAGE


class TooManyRequests(UsageError):
    """A limit of the API key or its project. The same request may succeed later."""


class NotFoundError(CliError):
    exit_code = CommandExit.NOT_FOUND


class AccessDenied(CliError):
    exit_code = CommandExit.ACCESS_DENIED


class ServiceUnreachable(CliError):
    """The service does not respond, or the connection was lost. A retry may succeed."""


BY_STATUS = {  # of the responses of the API; any other 4xx is a UsageError, any other 5xx a CliError
    401: AccessDenied,
    403: AccessDenied,
    404: NotFoundError,
    408: ServiceUnreachable,
    429: TooManyRequests,
    502: ServiceUnreachable,
    503: ServiceUnreachable,
    504: ServiceUnreachable,
}


def error_class(status: int) -> type[CliError]:
    """The error of a response that is none."""
    return BY_STATUS.get(status) or (CliError if status >= 500 else UsageError)
