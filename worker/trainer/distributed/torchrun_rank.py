"""One of several processes that train together.

`torchrun ... --module worker.trainer.distributed.torchrun_rank WORKDIR`

The first rank is a trainer like any other: its standard input brings control lines, its standard output takes records,
and its exit code goes into WORKDIR/exit_code. The others say nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from app.domain.jobs.events import Record
from app.domain.jobs.spec import TrainerSpec
from worker.trainer.distributed.torchrun import EXIT_CODE
from worker.trainer.records import claim_standard_output
from worker.trainer.runtime.process import control_lines, die_with_parent
from worker.trainer.runtime.stop import StopRequests


def main(arguments: list[str]) -> int:
    is_first = os.environ["RANK"] == "0"
    control = control_lines()
    emit = claim_standard_output()
    die_with_parent()
    workdir = Path(arguments[0])
    spec = TrainerSpec.model_validate_json((workdir / "spec.json").read_bytes())
    stops = StopRequests(spec.run.run_id)
    stops.handle_signals()  # torchrun's, when another rank has failed: not a reason to leave a record half written
    if is_first:
        stops.listen(control)
    from worker.trainer.run import CLEAN_EXITS, run_rank

    code = run_rank(spec, workdir, emit if is_first else emit_nothing, stops)
    if is_first:
        (workdir / EXIT_CODE).write_text(str(code))
    return 0 if code in CLEAN_EXITS else code  # torchrun ends the others at any other number


def emit_nothing(record: Record) -> None:
    del record


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
