"""The child program of one run: python -m worker.tracking DIRECTORY

Its standard input is a RunRequest, then a line [step, {metric: value}] for each step, then {"has_failed": ...}; each is
one line of JSON. Its standard output is empty, or the error that ended it. The client has its own process because it
installs hooks at exit, blocks, and cannot be stopped otherwise.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from worker.tracking.runs import RunRequest, open_run

OPERATION_SECONDS = 120  # SIGALRM ends the process after it, whatever the client waits for


def main() -> None:
    answer = os.dup(sys.stdout.fileno())
    for stream in (sys.stdout, sys.stderr):  # the clients print to both
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    request: RunRequest | None = None
    try:
        request = RunRequest.model_validate_json(sys.stdin.buffer.readline())
        _record(request, Path(sys.argv[1]))
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        for secret in request.secrets if request else ():
            text = text.replace(secret, "***")
        os.write(answer, text[:2_000].encode())
        os._exit(1)  # without the client's hooks
    os._exit(0)


def _record(request: RunRequest, directory: Path) -> None:
    signal.alarm(OPERATION_SECONDS)
    run = open_run(request, directory)
    signal.alarm(0)
    has_failed = True  # if the worker ends without the last line
    while line := sys.stdin.buffer.readline():
        message = json.loads(line)
        if isinstance(message, dict):
            has_failed = message["has_failed"]
            break
        signal.alarm(OPERATION_SECONDS)
        run.log(*message)
        signal.alarm(0)
    signal.alarm(OPERATION_SECONDS)
    run.finish(has_failed)


if __name__ == "__main__":
    main()
