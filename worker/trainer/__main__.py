"""`python -m worker.trainer WORKDIR`: read WORKDIR/spec.json, train, write below WORKDIR/runs/.

`python -m worker.trainer --spare` is a warm trainer: it imports everything, reads one line that names WORKDIR, and then
does the same.

Standard output: one record per line (app.domain.jobs.events), and nothing else. Standard error: the log. Standard
input: control lines; its end is ignored. SIGTERM and SIGINT drain. The exit code is one of
app.domain.jobs.states.ExitCode.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from app.domain.jobs.events import Begin
from app.domain.jobs.spec import TrainerSpec
from app.domain.jobs.states import ExitCode
from worker.trainer.distributed.torchrun import run_ranks
from worker.trainer.runtime.process import (
    StopRequests,
    control_lines,
    die_with_parent,
    start_working_time,
)
from worker.trainer.runtime.records import claim_standard_output

WARM_OPTION = "--spare"
TORCH_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def main(arguments: list[str]) -> int:
    control = control_lines()
    emit = claim_standard_output()
    die_with_parent()
    if len(arguments) != 1:
        print("usage: python -m worker.trainer WORKDIR | --spare", file=sys.stderr)
        return ExitCode.BAD_SPEC
    workdir = wait_for_work(control) if arguments == [WARM_OPTION] else Path(arguments[0]).resolve()
    try:
        spec = TrainerSpec.model_validate_json((workdir / "spec.json").read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{workdir / 'spec.json'} cannot be read: {error}", file=sys.stderr)  # pydantic names each field
        return ExitCode.BAD_SPEC
    if spec.world_size > 1:
        return run_ranks(spec, workdir, emit, control)
    stops = StopRequests(spec.run.run_id)
    stops.handle_signals()
    stops.listen(control)
    # It imports torch and transformers, which takes seconds: only for a valid spec.
    from worker.trainer.training.run import run

    gc.freeze()  # at the exit the collector then skips the modules: 0.4 s of processor time instead of 1.4
    return run(spec, workdir, emit, stops)


def wait_for_work(control: IO[bytes]) -> Path:
    """Import what every job needs, then read the work directory from the input. Exit at the end of the input.

    The current directory and the directory for temporary files become those of the work directory.
    """
    import worker.trainer.training.run  # noqa: F401  everything that a job imports; none of it initializes a GPU

    line = control.readline()
    if not line:
        sys.exit(ExitCode.DONE)
    start_working_time()
    workdir = Begin.model_validate_json(line).work_directory.resolve()
    if Path(os.environ.get(TORCH_CACHE_VARIABLE, "")).parent == Path(tempfile.gettempdir()):
        del os.environ[TORCH_CACHE_VARIABLE]  # torch has set its default at import; an operator's value is kept
    os.chdir(workdir)
    os.environ["TMPDIR"] = str(workdir / "tmp")
    tempfile.tempdir = None  # Python caches the directory
    return workdir


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
