"""A forked program does what the started one does."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.domain.jobs.events import Done, Started, parse_record
from tests.deadline import until
from tests.fork_server import forked
from tests.processes import is_alive
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.trainer.helpers import float32_spec

ROOT = Path(__file__).parents[2]


def start(command: Sequence[str], workdir: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, str(workdir)], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def write_spec(workdir: Path, **changes: object) -> Path:
    base = make_tiny_base(workdir / "base")
    spec = float32_spec(base, make_tiny_dataset(workdir / "train.jsonl", 8), **changes)
    (workdir / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    return workdir


@pytest.mark.extended("shows a tool of the tests by a start of the real program")
@pytest.mark.timeout(240)
def test_fork_and_exec_give_the_same_adapter_bytes(tmp_path: Path) -> None:
    digests = set()
    for name, command in (("forked", forked("worker.trainer")), ("started", (sys.executable, "-m", "worker.trainer"))):
        (tmp_path / name).mkdir()
        program = start(command, write_spec(tmp_path / name))
        assert program.stdout is not None
        assert program.stderr is not None
        output, log = program.stdout.read(), program.stderr.read()
        assert program.wait() == 0, log  # although its input stays open
        program.communicate()
        records = [parse_record(line.encode()) for line in output.splitlines()]  # nothing else
        assert isinstance(records[0], Started)
        done = records[-1]
        assert isinstance(done, Done)
        assert "kernels" not in log  # bitsandbytes' advice, which nobody must follow
        weights = tmp_path / name / done.directory / "adapter_model.safetensors"
        digests.add(hashlib.sha256(weights.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_killed_client_ends_its_program(tmp_path: Path) -> None:
    program = start(forked("tests.fork_server.sleeper"), tmp_path)
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    program.kill()
    program.communicate()
    until(lambda: not is_alive(pid), "the program has ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_and_exit_codes_are_passed_on(tmp_path: Path, number: signal.Signals) -> None:
    program = start(forked("tests.fork_server.sleeper"), tmp_path)
    assert program.stdout is not None
    program.stdout.readline()
    program.send_signal(number)
    program.communicate()
    assert program.returncode == 40 + number
