"""A process of pytest-xdist in the place of `python -u -c PROGRAM`, forked from one that has imported much."""

import os
import sys

from app.system.host import PARENT_PID_VARIABLE

del os.environ[PARENT_PID_VARIABLE]  # the programs of tests have another parent than this process has
*_, program = sys.argv
exec(program, {"__name__": "__main__"})
