"""The API's process as uvicorn makes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LOOK = """
import gc
from app.main import app_from_environment

app = app_from_environment()
print(gc.get_freeze_count() > 50_000, len(gc.get_objects()) < gc.get_freeze_count() / 10)
"""


def test_loaded_objects_are_excluded_from_garbage_collection(tmp_path: Path) -> None:
    environment = os.environ | {
        "DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0",
        "TUNERY_DATA_DIR": str(tmp_path),
    }  # fmt: skip

    done = subprocess.run([sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["True", "True"]
