"""Training with several processes: torchrun runs inside the trainer's process.

For the worker it is the same process as always: one process id, standard input, exit code and slot lock. It forwards
control lines to the first rank. SIGTERM, which only this process receives, becomes a control line. When a rank dies,
torchrun ends the others; when this process dies, all ranks end.
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
from app.system.host import PARENT_PID_VARIABLE
from worker.trainer.model.patches import Patches
from worker.trainer.runtime.records import RecordStream

PROGRAM = "worker.trainer.distributed.torchrun_rank"
EXIT_CODE_FILE = "exit_code"  # in the work directory: the exit code of the first rank
# A rank exits with these before it has joined, or after an error that the first rank has not seen.
RANK_EXIT_CODES = (ExitCode.BAD_SPEC, ExitCode.OUT_OF_MEMORY, ExitCode.DEVICE_LOST)


def run_ranks(spec: TrainerSpec, workdir: Path, records: RecordStream, control: IO[bytes]) -> int:
    """Train with `spec.world_size` processes and return the exit code of the trainer."""
    (workdir / EXIT_CODE_FILE).unlink(missing_ok=True)
    control_descriptor = _replace_standard_input()
    _forward_signals(spec, control_descriptor)
    threading.Thread(target=_forward_lines, args=(control, control_descriptor), name="control", daemon=True).start()
    records.restore_standard_output()
    os.environ[PARENT_PID_VARIABLE] = str(os.getpid())
    failures = _run_torchrun(spec.world_size, workdir)
    try:
        return int((workdir / EXIT_CODE_FILE).read_text())
    except (OSError, ValueError):
        return combine_exit_codes(failures)


def combine_exit_codes(failures: Sequence[int]) -> int:
    """Return the trainer's exit code if the first rank wrote none. A rank killed by the kernel ended the others."""
    if -signal.SIGKILL in failures:
        return ExitCode.KILLED
    return next((code for code in failures if code in RANK_EXIT_CODES), ExitCode.INTERNAL)


def _run_torchrun(processes: int, workdir: Path) -> list[int]:
    """Run the ranks and return the exit codes of those that failed."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # otherwise gloo resolves the host name
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
        "--signals-to-handle=SIGHUP",  # `_forward_signals` handles SIGTERM
    ]
    try:
        with Patches() as patches:
            # The ranks inherit the slot's lock, so that a rank which cannot be killed keeps the slot occupied.
            patches.put_attribute(subprocess_handler, "Popen", functools.partial(subprocess.Popen, close_fds=False))
            # torchrun calls it for its logs; without a network that takes seconds.
            patches.put_attribute(socket, "getfqdn", lambda name="": name or "localhost")
            run(parse_args([*options, "--module", PROGRAM, str(workdir)]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        return [failure.exitcode for failure in error.failures.values()]
    return []


def _replace_standard_input() -> int:
    """Make a pipe the standard input, which the ranks inherit and the first one reads. Return its write end."""
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    return writing


def _forward_signals(spec: TrainerSpec, control_descriptor: int) -> None:
    drain = Control(command=Command.DRAIN, run_id=spec.run.run_id).model_dump_json().encode() + b"\n"
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os.write(control_descriptor, drain))


def _forward_lines(control: IO[bytes], control_descriptor: int) -> None:
    for line in control:
        os.write(control_descriptor, line)
