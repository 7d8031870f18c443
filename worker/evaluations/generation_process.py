"""The process of the program that generates answers: started and watched as that of an export. No torch here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.exports.export_process import LOG_NAME, ExportProcess
from worker.jobs.trainer_process import launch

GENERATE_COMMAND = (sys.executable, "-m", "worker.trainer.answers.evaluation")


class GenerationProcess(ExportProcess):
    """One running generation. It writes its answers to a file, and its progress is that it computes."""

    def wait_for(self, timeout_seconds: float) -> int | None:
        """The exit code, or None if the process still runs after the timeout."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None


def start_generation(
    command: Sequence[str], directory: Path, lock_descriptor: int, threads: int | None
) -> GenerationProcess:
    """Start the program from a thread that outlives it: the parent-death signal follows the thread. Raises OSError."""
    process = launch([*command, str(directory)], directory, lock_descriptor, threads)
    return GenerationProcess(process, directory / LOG_NAME)
