"""A real Celery worker in its own process, with the trainer of the test.

python worker_process.py SETTINGS TRAINER_COMMAND QUEUE NODE
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from app.settings import Settings


def start(settings: Settings, trainer: tuple[str, ...], queue: str, node: str) -> subprocess.Popen[bytes]:
    values = settings.model_dump(mode="json")
    log = (Path(settings.data_dir).parent / f"{node}.log").open("ab")
    root = Path(__file__).resolve().parents[2]
    with log:
        return subprocess.Popen(
            [sys.executable, __file__, json.dumps(values), json.dumps(trainer), queue, node],
            env=os.environ | {"PYTHONPATH": str(root), "PYTHONWARNINGS": "default"},
            stdout=log,
            stderr=log,
        )


def main() -> None:
    from worker.celery_app import make_worker

    values, trainer, queue, node = sys.argv[1:]
    celery = make_worker(Settings(**json.loads(values)), json.loads(trainer))
    arguments = ["-P", "threads", "-c", "1", "-Q", queue, "-n", f"{node}@test", "--without-gossip", "--without-mingle"]
    celery.worker_main(["worker", *arguments, "--loglevel", "INFO"])


if __name__ == "__main__":
    main()
