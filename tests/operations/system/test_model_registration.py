"""MXFP4 and FP8 checkpoints: refused before they are converted, converted once, and never taken for others."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.base_models.catalog import RefusedModel, TrainerReport
from app.system import model_registration
from app.system.model_registration import RegistrationOptions, check_and_hash
from tests.tiny import make_tiny_base
from worker.trainer.model.dequantize_checkpoint import dequantize

WEIGHT = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    directory = make_tiny_base(tmp_path / "tiny")
    tensors = load_file(directory / "model.safetensors")
    codes = {WEIGHT: tensors[WEIGHT].to(torch.float8_e4m3fn), f"{WEIGHT}_scale_inv": torch.tensor(0.5)}
    save_file(tensors | codes, directory / "model.safetensors")
    change_config(directory, quantization_config={"quant_method": "fp8"})
    return directory


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the programs of the trainer in this process, without the check of the model; return their names."""
    started = []

    def run(program: str, *paths: Path, check: Callable[[], None]) -> Any:
        started.append(program)
        dequantize(*paths)
        return model_registration.subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(model_registration, "_run", run)
    monkeypatch.setattr(model_registration, "check_model", lambda directory, check: None)
    return started


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def register(directory: Path) -> Path:
    return check_and_hash(directory, RegistrationOptions(), lambda text: None).directory


class TestBeforeTheConversion:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [({"kv_lora_rank": 16}, "multi-head latent attention"), ({"auto_map": {}}, "key auto_map, which loads code")],
    )
    def test_a_model_that_cannot_be_trained_is_refused(
        self, fp8: Path, programs: list[str], changes: dict[str, Any], problem: str
    ) -> None:
        change_config(fp8, **changes)
        with pytest.raises(RefusedModel, match=problem):
            register(fp8)
        assert (programs, list(fp8.parent.iterdir())) == ([], [fp8])

    def test_a_disk_that_is_too_small_is_named_with_the_bytes(
        self, fp8: Path, programs: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weights = 2 * sum(tensor.numel() for tensor in load_file(fp8 / "model.safetensors").values())
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=weights - 1))
        with pytest.raises(RefusedModel, match=r"needs 0\.00 GB"):
            register(fp8)
        assert programs == []


class TestConversion:
    def test_a_conversion_runs_once_and_again_after_the_source_has_changed(
        self, fp8: Path, programs: list[str]
    ) -> None:
        copy = fp8.with_name("tiny-bf16")
        assert register(fp8) == register(fp8) == copy
        assert programs == ["dequantize_checkpoint"]
        tensors = load_file(fp8 / "model.safetensors")
        save_file(tensors | {"model.norm.weight": torch.ones(64)}, fp8 / "model.safetensors")
        with pytest.raises(RefusedModel, match="was not converted"):
            register(fp8)
        assert register(copy) == copy
        shutil.rmtree(copy)
        make_tiny_base(copy)  # of another origin
        with pytest.raises(RefusedModel, match="was not converted"):
            register(fp8)
        shutil.rmtree(copy)
        assert register(fp8) == copy
        assert torch.equal(load_file(copy / "model.safetensors")["model.norm.weight"].float(), torch.ones(64))

    def test_a_new_copy_that_the_check_refuses_is_removed_and_an_earlier_one_stays(
        self, fp8: Path, programs: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(directory: Path, check: object) -> TrainerReport | None:
            raise RefusedModel("its weights are wrong")

        copy = fp8.with_name("tiny-bf16")
        with monkeypatch.context() as patch:
            patch.setattr(model_registration, "check_model", refuse)
            with pytest.raises(RefusedModel, match="weights are wrong"):
                register(fp8)
        assert not copy.exists()
        register(fp8)
        monkeypatch.setattr(model_registration, "check_model", refuse)
        with pytest.raises(RefusedModel, match="weights are wrong"):
            register(fp8)
        assert copy.exists()


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
    done = model_registration._run("check_model", tmp_path, check=nothing)
    assert done.stdout == f"{os.getpid()} -m worker.trainer.model.check_model {tmp_path}\n"


def test_an_interruption_ends_the_child(
    tmp_path: Path, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(f"echo $$ > {tmp_path}/pid; exec sleep 60")
    monkeypatch.setattr(model_registration, "CHECK_SECONDS", 0.01)

    def check() -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            raise Interrupted

    with pytest.raises(Interrupted):
        model_registration.check_model(tmp_path, check)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


@pytest.mark.parametrize("script", ["exit 71", "exit 137", "kill -9 $$"])
def test_too_little_memory_is_no_reason_against_a_model(
    tmp_path: Path, program: Callable[[str], None], script: str
) -> None:
    program(script)
    assert model_registration.check_model(tmp_path, nothing) is None


def test_another_exit_code_is_a_refusal_with_the_last_line(tmp_path: Path, program: Callable[[str], None]) -> None:
    program("echo first >&2; echo 'ValueError: last' >&2; exit 1")
    with pytest.raises(RefusedModel, match=r"\(ValueError: last\)"):
        model_registration.check_model(tmp_path, nothing)


def test_a_conversion_that_fails_is_a_refusal_with_its_reason(
    fp8: Path,
    program: Callable[[str], None],
) -> None:
    program("echo 'No space left on device' >&2; exit 1")
    with pytest.raises(RefusedModel, match="No space left"):
        model_registration.dequantize(fp8, fp8.with_name("copy"), nothing)


@pytest.mark.extended("converts and trains a checkpoint in FP8")
def test_an_fp8_checkpoint_is_converted_checked_and_hashed(fp8: Path) -> None:
    notes: list[str] = []
    checked = check_and_hash(fp8, RegistrationOptions(), notes.append)
    assert checked.directory == fp8.with_name("tiny-bf16")
    assert checked.entry.activation_bytes
    assert not any("Not checked" in note for note in notes)
