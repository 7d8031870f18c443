"""`python -m app.cli.local_stack DATA_DIR HOST PORT`: `tunery up` as background.py starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from app.cli.local_stack.up import UpOptions, run

if __name__ == "__main__":
    directory, host, port = sys.argv[1:]
    raise SystemExit(run(UpOptions(Path(directory), host, int(port))))
