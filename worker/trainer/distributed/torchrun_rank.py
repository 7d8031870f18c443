"""One of several processes of a data-parallel training.

`torchrun ... --module worker.trainer.distributed.torchrun_rank WORKDIR`

The first rank works as the trainer of one process does: it reads control lines from standard input and writes records
to standard output. It also writes its exit code to WORKDIR/exit_code. The other ranks emit no records.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from app.domain.jobs.spec import TrainerSpec
from worker.trainer.distributed.torchrun import EXIT_CODE_FILE
from worker.trainer.runtime.process import StopRequests, control_lines, die_with_parent
from worker.trainer.runtime.records import claim_standard_output


def main(arguments: list[str]) -> int:
    is_first = os.environ["RANK"] == "0"
    control = control_lines()
    emit = claim_standard_output()
    die_with_parent()
    workdir = Path(arguments[0])
    spec = TrainerSpec.model_validate_json((workdir / "spec.json").read_bytes())
    stops = StopRequests(spec.run.run_id)
    stops.handle_signals()  # torchrun sends SIGTERM when another rank has failed; a record must not be cut off by it
    if is_first:
        stops.listen(control)
    from worker.trainer.training.run import CLEAN_EXITS, run_rank

    code = run_rank(spec, workdir, emit if is_first else lambda _: None, stops)
    if is_first:
        (workdir / EXIT_CODE_FILE).write_text(str(code))
    return 0 if code in CLEAN_EXITS else code  # with another code than 0 torchrun ends the other ranks


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
