"""Continued training: a run that starts from the tensors of an earlier adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.domain.jobs.events import Command
from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import ExitCode, Reason
from app.system import artifact_directory
from tests.trainer.helpers import (
    Trainings,
    assert_same_adapter,
    float32_spec,
    load_tiny_base,
    make_spec,
    prepare,
    run_trainer,
)

VARIANT: dict[str, Any] = {
    "use_dora": True,
    "modules_to_save": ["lm_head"],
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"v_proj": 3},
}


@pytest.fixture(scope="module")
def earlier(tiny: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("earlier")
    code, log = run_trainer(float32_spec(tiny, examples, **VARIANT), workdir)
    assert code == 0, log.last
    return workdir / str(log.last.directory)


def from_it(earlier: Path, **changes: Any) -> dict[str, Any]:
    return VARIANT | {
        "start_adapter": earlier,
        "start_adapter_sha256": artifact_directory.sha256_file(earlier / "MANIFEST.json"),
        "start_adapter_name": "ft:tiny:tunery::0a1b2c3d",
    } | changes  # fmt: skip


class TestContinuedTraining:
    @pytest.mark.parametrize(
        "width", [QuantizationSpec(), QuantizationSpec(bits=8), None], ids=["NF4", "8 bits", "16 bits"]
    )
    def test_every_tensor_of_the_parent_adapter_is_copied_with_any_quantization(
        self, tiny: Path, examples: Path, earlier: Path, width: QuantizationSpec | None
    ) -> None:
        spec = make_spec(tiny, examples, quantization=width, **from_it(earlier))
        run = prepare(spec, load_tiny_base(tiny, width), Path("unused"))
        tensors = load_file(earlier / "adapter_model.safetensors")
        assert run.adapter.named_parameters().keys() == tensors.keys()
        assert all(torch.equal(run.adapter.named_parameters()[name], tensor) for name, tensor in tensors.items())
        assert (run.step, run.optimizer.state) == (0, {})

    def test_the_new_adapter_names_the_base_model_and_its_parent(self, train: Trainings, earlier: Path) -> None:
        log = train(quantization={}, **from_it(earlier))
        assert log.code == ExitCode.DONE, log.last
        assert log.losses[0] < 4  # the base model's is 5.5
        assert json.loads((log.result / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
        assert artifact_directory.verify(log.result)["continued_from"] == {
            "model": "ft:tiny:tunery::0a1b2c3d",
            "manifest_sha256": artifact_directory.sha256_file(earlier / "MANIFEST.json"),
        }
        assert artifact_directory.verify(earlier)["continued_from"] is None

    def test_an_attempt_resumes_to_the_bit_and_only_with_the_same_parent(self, train: Trainings, earlier: Path) -> None:
        asked = from_it(earlier, dropout=0.2)
        whole = train(**asked)
        snapshot = train(stop_at=(2, Command.DRAIN), **asked).snapshot
        assert_same_adapter(train(resume_from=snapshot, **asked), whole)
        anew = train(resume_from=snapshot, **VARIANT, dropout=0.2)
        assert anew.code == ExitCode.BAD_SPEC
        assert "start_adapter_sha256" in anew.failure.message

    @pytest.mark.parametrize(
        "changes", [{"r": 8}, {"use_dora": False}, {"modules_to_save": []}, {"target_modules": ["q_proj", "v_proj"]}]
    )
    def test_lora_parameters_that_differ_from_the_parents_are_refused(
        self, train: Trainings, earlier: Path, changes: dict[str, Any]
    ) -> None:
        log = train(**from_it(earlier, **changes))
        assert (log.code, log.failure.reason) == (ExitCode.BAD_SPEC, Reason.INVALID_SPEC)
        assert "parent adapter" in log.failure.message

    def test_a_damaged_or_a_different_parent_adapter_is_refused(
        self, train: Trainings, earlier: Path, tmp_path: Path
    ) -> None:
        for asked in (from_it(earlier, start_adapter_sha256="0" * 64), from_it(earlier) | {"start_adapter": tmp_path}):
            log = train(**asked)
            assert (log.code, log.failure.reason) == (ExitCode.INTERNAL, Reason.TRAINER_CRASHED)
            assert "damaged" in log.failure.message
