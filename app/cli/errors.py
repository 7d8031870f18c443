"""What a command tells its user, and the exit code that a script sees.

    CliError                1  the job failed, or the server or the network did
    +- UsageError              2  the command or its values must change
    +- Missing              3  no such job, file, model or key
    +- NotAllowed           4  no key, a wrong one, or one that may not

130 is a Ctrl-C. Every message says what was seen, what is allowed and what to do.
"""

from __future__ import annotations

INTERRUPTED = 130


class CliError(Exception):
    exit_code = 1


class UsageError(CliError):
    exit_code = 2


class Missing(CliError):
    exit_code = 3


class NotAllowed(CliError):
    exit_code = 4


class Unreachable(CliError):
    """Nobody answers there, or the answer broke off. Asking again may help."""
