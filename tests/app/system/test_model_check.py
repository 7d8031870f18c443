"""The child processes of a registration: their end, their exit codes, and a real conversion with its check."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.base_models.catalog import RefusedModel
from app.system import model_check
from app.system.model_registration import RegistrationOptions, check_and_hash
from tests.app.system.test_model_registration import fp8  # noqa: F401  a fixture


class Interrupted(Exception):
    pass


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a shell script run in place of the programs of the trainer."""

    def write(script: str) -> None:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(path))

    return write


def nothing() -> None:
    pass


def test_a_child_gets_the_process_with_which_it_ends(tmp_path: Path, program: Callable[[str], None]) -> None:
    program('echo "$TUNERY_PARENT_PID $*"')
    done = model_check._run("check_model", tmp_path, check=nothing)
    assert done.stdout == f"{os.getpid()} -m worker.trainer.model.check_model {tmp_path}\n"


def test_an_interruption_ends_the_child(
    tmp_path: Path, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(f"echo $$ > {tmp_path}/pid; exec sleep 60")
    monkeypatch.setattr(model_check, "CHECK_SECONDS", 0.01)

    def check() -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            raise Interrupted

    with pytest.raises(Interrupted):
        model_check.check_model(tmp_path, check)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


@pytest.mark.parametrize("script", ["exit 71", "exit 137", "kill -9 $$"])
def test_too_little_memory_is_no_reason_against_a_model(
    tmp_path: Path, program: Callable[[str], None], script: str
) -> None:
    program(script)
    assert model_check.check_model(tmp_path, nothing) is None


def test_another_exit_code_is_a_refusal_with_the_last_line(tmp_path: Path, program: Callable[[str], None]) -> None:
    program("echo first >&2; echo 'ValueError: last' >&2; exit 1")
    with pytest.raises(RefusedModel, match=r"the trainer cannot load it \(ValueError: last\)"):
        model_check.check_model(tmp_path, nothing)


def test_a_conversion_that_fails_is_a_refusal_with_its_reason(
    fp8: Path,  # noqa: F811
    program: Callable[[str], None],
) -> None:
    program("echo 'No space left on device' >&2; exit 1")
    with pytest.raises(RefusedModel, match="cannot be converted to 16 bits: No space left on device"):
        model_check.dequantize(fp8, fp8.with_name("copy"), nothing)


@pytest.mark.extended("converts and trains a checkpoint in FP8")
def test_an_fp8_checkpoint_is_converted_checked_and_hashed(fp8: Path) -> None:  # noqa: F811
    notes: list[str] = []
    checked = check_and_hash(fp8, RegistrationOptions(), notes.append)
    assert checked.directory == fp8.with_name("tiny-bf16")
    assert checked.entry.activation_bytes
    assert any("Copy it to the same path on every worker" in note for note in notes)
    assert not any("Not checked" in note for note in notes)
