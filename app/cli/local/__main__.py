"""`python -m app.cli.local DATA_DIR [HOST [PORT]]`: `tunery up` without the rest of the CLI, for background.py."""

from __future__ import annotations

import sys
from pathlib import Path

from app.cli.local.up import UpOptions, run

arguments = sys.argv[1:]
options = UpOptions(Path(arguments[0]), *arguments[1:2], *map(int, arguments[2:3]))
raise SystemExit(run(options))
