"""`python -m worker.trainer WORKDIR`: read WORKDIR/spec.json, train, write below WORKDIR/runs/.

Standard output: one record a line (app.domain.events), and nothing else. Standard error: the log. Standard input:
control lines; its end means nothing. SIGTERM and SIGINT drain. The exit code is one of app.domain.states.ExitCode.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from app.domain.spec import TrainerSpec
from app.domain.states import ExitCode
from worker.trainer.emit import claim_standard_output
from worker.trainer.stop import Stops

PARENT = "TUNERY_PARENT_PID"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> int:
    control = control_lines()
    emit = claim_standard_output()
    die_with_parent()
    if len(arguments) != 1:
        print("usage: python -m worker.trainer WORKDIR", file=sys.stderr)
        return ExitCode.BAD_SPEC
    workdir = Path(arguments[0]).resolve()
    try:
        spec = TrainerSpec.model_validate_json((workdir / "spec.json").read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{workdir / 'spec.json'} cannot be read: {error}", file=sys.stderr)
        return ExitCode.BAD_SPEC
    stops = Stops(run.run_id for run in spec.runs)
    stops.obey_signals()
    stops.listen(control)
    from worker.trainer.run import run  # torch and transformers, some seconds: after the spec is known to be good

    return run(spec, workdir, emit, stops)


def control_lines() -> IO[bytes]:
    """Standard input, unbuffered: Python can't exit while a thread waits in a buffered one. Closed is empty."""
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # gets the lowest free number, which is 0
    return os.fdopen(os.dup(0), "rb", buffering=0)


def die_with_parent() -> None:
    """Never outlive the worker that started us: an orphan would hold the GPU.

    The kernel sends the signal from the moment of the call on; a parent that died before that is looked for afterwards.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        print(f"the parent {parent} is gone", file=sys.stderr)
        sys.exit(ExitCode.INTERNAL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
