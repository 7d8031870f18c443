"""`python -m worker.trainer WORKDIR`: read WORKDIR/spec.json, train, write below WORKDIR/runs/.

`python -m worker.trainer --spare` imports everything, waits for one line that names WORKDIR, and goes on as above.

Standard output: one record a line (app.domain.jobs.events), and nothing else. Standard error: the log. Standard input:
control lines; its end means nothing. SIGTERM and SIGINT drain. The exit code is one of app.domain.jobs.states.ExitCode.
"""

from __future__ import annotations

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
from worker.trainer.records import claim_standard_output
from worker.trainer.runtime.onednn import limit_primitive_cache
from worker.trainer.runtime.process import control_lines, die_with_parent, work_begins
from worker.trainer.runtime.stop import StopRequests

SPARE = "--spare"
TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def main(arguments: list[str]) -> int:
    control = control_lines()
    emit = claim_standard_output()
    die_with_parent()
    if len(arguments) != 1:
        print("usage: python -m worker.trainer WORKDIR | --spare", file=sys.stderr)
        return ExitCode.BAD_SPEC
    workdir = wait_for_work(control) if arguments == [SPARE] else Path(arguments[0]).resolve()
    try:
        spec = TrainerSpec.model_validate_json((workdir / "spec.json").read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{workdir / 'spec.json'} cannot be read: {error}", file=sys.stderr)
        return ExitCode.BAD_SPEC
    limit_primitive_cache()
    if spec.world_size > 1:
        return run_ranks(spec, workdir, emit, control)
    stops = StopRequests(spec.run.run_id)
    stops.handle_signals()
    stops.listen(control)
    from worker.trainer.run import run  # torch and transformers, some seconds: after the spec is known to be good

    return run(spec, workdir, emit, stops)


def wait_for_work(control: IO[bytes]) -> Path:
    """Get everything ready that no job decides, then wait. The end of the input means that nobody needs us.

    What was set for the place of waiting (the directory, where temporary files go) becomes the work directory's.
    """
    import worker.trainer.run  # noqa: F401  all that a job imports; nothing of it touches a GPU

    line = control.readline()
    if not line:
        sys.exit(ExitCode.DONE)
    work_begins()
    workdir = Begin.model_validate_json(line).work_directory.resolve()
    if Path(os.environ.get(TORCH_CACHE, "")).parent == Path(tempfile.gettempdir()):
        del os.environ[TORCH_CACHE]  # torch's own choice, made once; an operator's stays
    os.chdir(workdir)
    os.environ["TMPDIR"] = str(workdir / "tmp")
    tempfile.tempdir = None  # found once and remembered
    return workdir


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
