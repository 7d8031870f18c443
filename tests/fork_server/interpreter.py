"""A process of pytest-xdist, forked from one that has imported what tests import; for `python -u -c PROGRAM`."""

import os
import sys

from app.system.host import PARENT_PID_VARIABLE

del os.environ[PARENT_PID_VARIABLE]  # the programs of tests have another parent than this process has
*_, program = sys.argv
exec(program, {"__name__": "__main__"})
