"""The trainer of several processes: torchrun inside the trainer's own, and one word at its end.

This process stays what the parent knows: its number, its standard input, its exit code, the lock of the slot. It reads
the control lines and passes them to the first rank; SIGTERM, which reaches this process only, becomes a line. A rank
that dies ends the others (torchrun's doing), and the death of this process ends all of them.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from app.domain.jobs.events import Command, Control
from app.domain.jobs.spec import TrainerSpec
from app.domain.jobs.states import ExitCode
from worker.trainer.records import RecordStream
from worker.trainer.runtime.process import PARENT

PROGRAM = "worker.trainer.distributed.torchrun_rank"
EXIT_CODE = "exit_code"  # in the work directory: what the first rank came to
KNOWN = (ExitCode.BAD_SPEC, ExitCode.OUT_OF_MEMORY)  # of a rank that could not tell the first one


def run_ranks(spec: TrainerSpec, workdir: Path, records: RecordStream, control: IO[bytes]) -> int:
    """Train with `spec.world_size` processes. Returns the exit code of the whole."""
    (workdir / EXIT_CODE).unlink(missing_ok=True)
    lines = _pass_input_on()
    _obey_signals(spec, lines)
    threading.Thread(target=_copy, args=(control, lines), name="control", daemon=True).start()
    records.restore_standard_output()
    os.environ[PARENT] = str(os.getpid())
    failures = _torchrun(spec.world_size, workdir)
    try:
        return int((workdir / EXIT_CODE).read_text())
    except (OSError, ValueError):
        return of_failures(failures)


def of_failures(failures: Sequence[int]) -> int:
    """The exit code of the whole, where the first rank left none. The kernel's kill is why the others ended."""
    if -signal.SIGKILL in failures:
        return ExitCode.KILLED
    return next((code for code in failures if code in KNOWN), ExitCode.INTERNAL)


def _torchrun(processes: int, workdir: Path) -> list[int]:
    """The exit codes of the ranks that failed; none when all of them came to an end of their own."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from torch.distributed.run import parse_args, run

    # A rank that won't die must keep its slot: it inherits the lock, as every child of a trainer does.
    subprocess_handler.Popen = functools.partial(subprocess.Popen, close_fds=False)  # type: ignore[attr-defined,assignment]
    socket.getfqdn = _localhost  # torchrun's logs ask for it; without a network that takes seconds
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks the host's name up
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    options = [
        "--nnodes=1",
        f"--nproc-per-node={processes}",
        "--max-restarts=0",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "--rdzv-conf=is_host=1",
        f"--rdzv-id={os.getpid()}",
        "--local-addr=127.0.0.1",
        "--signals-to-handle=SIGHUP",  # SIGTERM is ours
    ]
    try:
        run(parse_args([*options, "--module", PROGRAM, str(workdir)]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        return [failure.exitcode for failure in error.failures.values()]
    return []


def _localhost(name: str = "") -> str:
    return name or "localhost"


def _pass_input_on() -> int:
    """The ranks inherit a pipe as their standard input; its other end. Only the first rank reads."""
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    return writing


def _obey_signals(spec: TrainerSpec, lines: int) -> None:
    def drain(_number: int, _frame: object) -> None:
        os.write(lines, _line(Control(command=Command.DRAIN, run_id=spec.run.run_id)))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, drain)


def _copy(control: IO[bytes], lines: int) -> None:
    for line in control:
        os.write(lines, line)


def _line(control: Control) -> bytes:
    return control.model_dump_json().encode() + b"\n"
