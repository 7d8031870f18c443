"""The trainer's process: three streams, signals and an exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.domain.jobs.events import Begin, CheckpointSaved, Metric, Started, Stopped, parse_record
from app.domain.jobs.states import ExitCode
from tests.deadline import until
from tests.fork_server import forked
from tests.trainer.helpers import FLOAT32, make_spec
from worker.trainer.__main__ import wait_for_work

ROOT = Path(__file__).parents[2]
ENDLESS = 1_000_000


def write_spec(workdir: Path, tiny: Path, examples: Path, **changes: Any) -> Path:
    # In float32: a processor that emulates bfloat16 adds a warning to the records.
    spec = make_spec(tiny, examples, quantization=FLOAT32, **changes)
    (workdir / "spec.json").write_text(spec.model_dump_json())
    return workdir


TRAINER = (sys.executable, "-m", "worker.trainer")


def start(
    workdir: Path | str, *, program: Sequence[str] = TRAINER, without_input: bool = False, **environment: str
) -> subprocess.Popen[bytes]:
    command = [*program, str(workdir)]
    return subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command] if without_input else command,
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextmanager
def running(workdir: Path, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a trainer with a million steps; return it after its first step."""
    process = start(workdir, **how)
    try:
        assert process.stdout is not None
        while not isinstance(parse_record(process.stdout.readline()), Metric):
            pass
        yield process
    finally:
        process.kill()
        process.communicate()


class TestProcess:
    def test_sigterm_drains_and_a_closed_input_stops_nothing(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        workdir = write_spec(tmp_path, tiny, examples, max_steps=ENDLESS)
        with running(workdir, without_input=True) as process:
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate()
        assert process.returncode == ExitCode.DRAINED
        last = parse_record(output.splitlines()[-1])
        assert isinstance(last, Stopped)
        assert (tmp_path / f"runs/run-a/snapshots/step-{last.step:06d}/MANIFEST.json").exists()

    def test_after_sigkill_it_resumes_from_its_newest_snapshot(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        snapshots = Path("runs/run-a/snapshots")
        changes = {"max_steps": ENDLESS, "snapshot_interval_seconds": 0, "resume_from": snapshots}
        with running(write_spec(tmp_path, tiny, examples, **changes)) as process:
            until(lambda: [*tmp_path.glob(f"{snapshots}/*/MANIFEST.json")], "a snapshot")
            process.kill()
            assert process.wait() == -signal.SIGKILL
        newest = max(path.parent.name for path in tmp_path.glob(f"{snapshots}/*/MANIFEST.json"))
        again = start(tmp_path, program=forked("worker.trainer"))
        assert again.stdout is not None
        started = next(each for line in again.stdout if isinstance(each := parse_record(line), Started))
        again.kill()
        again.communicate()
        assert f"step-{started.start_step:06d}" == newest

    @pytest.mark.parametrize("content", [None, "{", '{"version": 2}', '{"version": 1, "typo": 1}'])
    def test_an_invalid_spec_is_refused(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "spec.json").write_text(content)
        process = start(tmp_path, program=forked("worker.trainer"))
        output, log = process.communicate()
        assert (process.returncode, output) == (ExitCode.BAD_SPEC, b"")
        assert b"spec.json" in log

    def test_a_trainer_whose_parent_is_dead_does_not_start(self, tmp_path: Path) -> None:
        process = start(tmp_path, TUNERY_PARENT_PID="1")
        process.communicate()
        assert process.returncode == ExitCode.INTERNAL

    def test_a_trainer_dies_with_its_parent(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        """After SIGKILL of the parent the shared pipe ends: no process has it open any more."""
        write_spec(tmp_path, tiny, examples, max_steps=ENDLESS)
        reading, writing = os.pipe()
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=writing, stderr=subprocess.DEVNULL
        )
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert json.loads(pipe.readline())["kind"] == "started"
            parent.kill()
            parent.wait()
            pipe.read()


class TestWarmTrainer:
    def test_it_waits_for_a_line_trains_in_its_work_directory_and_handles_control_lines(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        workdir = write_spec(tmp_path, tiny, examples, max_steps=ENDLESS)
        process = start("--spare", program=forked("worker.trainer"))
        begin = Begin(work_directory=workdir).model_dump_json().encode()
        output, log = process.communicate(begin + b'\nnot a control line\n{"command": "pause", "run_id": "run-a"}\n')
        assert process.returncode == ExitCode.PAUSED, log.decode()
        records = [parse_record(line) for line in output.splitlines()]
        assert isinstance(records[0], Started)
        (saved,) = (record for record in records if isinstance(record, CheckpointSaved))
        assert (workdir / saved.directory / "MANIFEST.json").exists()

    @pytest.mark.extended("another start of the real program")
    def test_it_makes_no_cuda_context_and_changes_to_the_work_directory(self, tmp_path: Path) -> None:
        program = (
            "import io, os, sys, tempfile\n"
            "from worker.trainer.__main__ import wait_for_work\n"
            "tempfile.gettempdir()\n"
            "wait_for_work(io.BytesIO(sys.argv[1].encode()))\n"
            "import torch; from torch._inductor.runtime.cache_dir_utils import cache_dir\n"
            "print(os.getcwd(), tempfile.gettempdir(), os.path.dirname(cache_dir()), torch.cuda.is_initialized())"
        )
        (tmp_path / "tmp").mkdir()
        temporary = str(tmp_path / "tmp")
        begin = Begin(work_directory=tmp_path).model_dump_json()
        environment = {**os.environ, "HOME": "/nonexistent"}  # without a cache of the user
        environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        done = subprocess.run(
            [sys.executable, "-c", program, begin], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.stdout.split() == [str(tmp_path), temporary, temporary, "False"], done.stderr

    def test_it_exits_at_the_end_of_its_input(self) -> None:
        with pytest.raises(SystemExit) as ended:
            wait_for_work(io.BytesIO())
        assert ended.value.code == ExitCode.DONE


PARENT = """
import os, subprocess, sys
environment = os.environ | {"TUNERY_PARENT_PID": str(os.getpid())}
subprocess.run([sys.executable, "-m", "worker.trainer", sys.argv[1]], env=environment)
"""
