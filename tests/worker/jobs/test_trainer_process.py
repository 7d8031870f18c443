"""The trainer's process: its environment, its records, its end, its log."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.jobs.events import Command
from tests.deadline import until
from tests.processes import is_alive
from worker.jobs.child_program import clean_environment
from worker.jobs.trainer_log import TrainerLog, redact
from worker.jobs.trainer_process import TrainerProcess, start_trainer
from worker.node.slot import try_lock

RUN = "ftjob-1"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Start a Python program as a trainer."""
    trainers: list[TrainerProcess] = []
    with try_lock(tmp_path / "lock") as lock:
        assert lock is not None

        def start(program: str) -> TrainerProcess:
            work = tmp_path / f"work-{len(trainers)}"
            work.mkdir()
            trainers.append(start_trainer((sys.executable, "-c", program), work, RUN, lock))
            return trainers[-1]

        yield start
        for trainer in trainers:
            trainer.close()


def message(text: str) -> str:
    return json.dumps({"kind": "message", "run_id": RUN, "message": text})


class TestEnvironment:
    def test_the_trainer_gets_the_variables_of_the_machine_and_no_secret_of_the_worker(self, tmp_path: Path) -> None:
        secret = {
            "DATABASE_URL": "postgresql://u:p@h/db",
            "REDIS_URL": "redis://h",
            "TUNERY_ADMIN_KEY_FILE": "/run/key",
            "AWS_SECRET_ACCESS_KEY": "x",
            "HF_TOKEN": "x",
            "PGPASSWORD": "x",
        }
        machine = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "GPU-1", "LD_LIBRARY_PATH": "/cuda", "LC_ALL": "C"}
        environment = clean_environment(secret | machine | {"PYTHONPATH": "/evil"}, tmp_path, threads=3)
        assert not environment.keys() & secret.keys()
        assert "/evil" not in environment["PYTHONPATH"]
        assert environment == environment | machine
        assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
        assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
        assert environment["TUNERY_PARENT_PID"] == str(os.getpid())
        assert environment["TMPDIR"] == str(tmp_path)

    def test_a_real_process_has_that_environment(self, start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@h/db")
        trainer = start(f"import os; print({message('%s')!r} % ' '.join(sorted(os.environ)).replace('_', '-'))")
        (record,) = trainer.records()
        assert "DATABASE" not in record.message
        assert "TUNERY-PARENT-PID" in record.message

    def test_a_trainer_imports_nothing_from_its_work_directory(self, start, tmp_path: Path) -> None:
        (tmp_path / "work-0").mkdir()
        (tmp_path / "work-0" / "json.py").write_text("raise SystemExit('imported a file of the work directory')")
        (tmp_path / "work-0").rename(tmp_path / "moved")
        trainer = start("import json, app.domain.jobs.spec; print(json.__file__)")
        (tmp_path / "moved" / "json.py").rename(tmp_path / "work-0" / "json.py")
        list(trainer.records())
        assert trainer.wait(5) == 0


class TestRecords:
    def test_records_come_in_order_and_the_trainer_never_waits_for_the_reader(self, start) -> None:
        """5,000 records, about a megabyte, fit into no pipe: they are read before `records` is iterated."""
        padded = message("@" + "x" * 150)
        trainer = start(f"for n in range(5000): print({padded!r}.replace('@', str(n)))")
        assert trainer.wait(20) == 0
        assert [record.message.rstrip("x") for record in trainer.records()] == [str(n) for n in range(5000)]

    def test_bad_lines_are_counted(self, start) -> None:
        other = message("x").replace("run_id", "run")
        lines = f"print({other!r}); print('x' * (2 << 20)); print('{{}}')"
        trainer = start(f"print('what?'); {lines}; print({message('x')!r}); print('[' * 100000); print('\\xff')")
        assert len(list(trainer.records())) == 1
        assert trainer.bad_lines == 6

    def test_control_lines_reach_the_trainer(self, start) -> None:
        trainer = start("import sys; print(sys.stdin.readline().strip().replace('command', 'kind'))")
        trainer.send_command(Command.PAUSE)
        list(trainer.records())
        assert trainer.bad_lines == 1  # it was echoed, and "pause" is no record
        trainer.send_command(Command.PAUSE)  # to a process that has exited: no error


class TestEnd:
    def test_close_kills_its_whole_process_group(self, start, tmp_path: Path) -> None:
        trainer = start(
            "import pathlib, subprocess, time\n"
            "grandchild = subprocess.Popen(['sleep', '60'])\n"
            "pathlib.Path('pid.part').write_text(str(grandchild.pid))\n"
            "pathlib.Path('pid.part').rename('pid')\n"
            "time.sleep(60)"
        )
        pid = tmp_path / "work-0" / "pid"
        until(pid.exists, "a grandchild")
        assert trainer.close() == -signal.SIGKILL
        until(lambda: not is_alive(int(pid.read_text())), "its end")

    def test_the_lock_of_a_trainer_is_held_until_it_exits(self, tmp_path: Path) -> None:
        work = tmp_path / "work"
        work.mkdir()
        with try_lock(tmp_path / "gpu.lock") as lock:
            assert lock is not None
            trainer = start_trainer((sys.executable, "-c", "import time; time.sleep(60)"), work, RUN, lock)
        with try_lock(tmp_path / "gpu.lock") as second:
            assert second is None
        trainer.close()
        with try_lock(tmp_path / "gpu.lock") as third:
            assert third is not None


class TestLog:
    def test_standard_error_is_kept_and_log_tail_returns_its_end(self, start) -> None:
        trainer = start("import sys; [print(f'line {n}', file=sys.stderr) for n in range(100)]")
        list(trainer.records())
        trainer.close()
        assert trainer.log_tail().splitlines()[-1] == "line 99"
        assert len(trainer.log_tail().splitlines()) == 20

    def test_the_log_is_bounded_and_keeps_its_end(self, tmp_path: Path) -> None:
        log = TrainerLog(tmp_path / "trainer.log", max_bytes=200_000)
        source = tmp_path / "source"
        with source.open("wb") as file:
            for n in range(100):
                file.write(b"%07d " % n + b"x" * 8000 + b"\n")
        with source.open("rb") as pipe:
            log.copy_from(pipe)
        size = sum(path.stat().st_size for path in tmp_path.glob("trainer.log*"))
        assert 100_000 <= size <= 220_000
        assert log.tail().splitlines()[-1].startswith("0000099 ")

    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ("loss 1.5\n", "loss 1.5\n"),
            ("a\x00b\x1b[31mred", "a\ufffdb\ufffd[31mred"),
            ("10%\r20%\r", "10%\n20%\n"),
            ("postgresql://tunery:s3cret@db/x failed", "postgresql://tunery:***@db/x failed"),
            ("key tnry_0123456789_abcdefgh is wrong", "key tnry_*** is wrong"),
            ("hf_ABCDEFGHIJKLMNOP", "hf_***"),
            ("Authorization: Bearer abcdefgh", "Authorization: ***"),
            ("PASSWORD=hunter2hunter2 x", "PASSWORD=*** x"),
        ],
    )
    def test_lines_are_printable_and_without_secrets(self, text: str, kept: str) -> None:
        assert redact(text) == kept
