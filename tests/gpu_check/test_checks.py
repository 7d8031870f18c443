"""The checks of `make gpu-check` that need no GPU, and proof that they can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.domain.jobs.events import Planned, Probed
from tests.gpu_check import checks
from tests.gpu_check.checks import CheckFailed, attention, fall_problem, out_of_memory, resume
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.trainer.helpers import CPU, Trainings
from worker.trainer.model.attention import attention as kernels
from worker.trainer.objective import objective

pytestmark = pytest.mark.extended("the checks of make gpu-check, on the processor")


class TestAttention:
    def test_a_kernel_that_mixes_documents_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "HEAD_SIZES", ((64, 64), (192, 128)))
        plain = kernels._block_kernel
        assert attention(CPU, tmp_path).startswith("2 ")
        monkeypatch.setattr(
            kernels, "_block_kernel", lambda heads: plain(replace(heads, lengths=(sum(heads.lengths),)))
        )
        with pytest.raises(CheckFailed, match="64, bfloat16"):
            attention(CPU, tmp_path)


class TestFallProblem:
    def test_a_run_that_learns_half_fails(self, tmp_path: Path) -> None:
        """With half the rate: its losses are within 2 % of the others, which an earlier comparison accepted."""
        base, data = make_tiny_base(tmp_path / "base"), make_tiny_dataset(tmp_path / "train.jsonl", 12)
        train = Trainings(base, data, tmp_path)
        rates = (3e-4, 3e-4, 1.5e-4)
        whole, again, half = (
            train(quantization={}, learning_rate=rate, lr_scheduler_type="constant").losses for rate in rates
        )
        assert fall_problem(again, whole) == ""
        assert half == pytest.approx(whole, rel=0.02)
        assert fall_problem(half, whole)
        assert fall_problem([whole[0]] * len(whole), whole)

    def test_losses_that_are_no_numbers_fail(self) -> None:
        assert fall_problem([5.0, float("nan")], [5.0, 4.0])
        assert fall_problem([5.0], [5.0, 4.0])


class TestPlans:
    @pytest.mark.parametrize(
        ("working_megabytes", "passes"), [(346, True), (253, False)], ids=["counted", "as for a Llama layer"]
    )
    def test_the_working_memory_counts_without_the_base_and_the_context(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, working_megabytes: int, passes: bool
    ) -> None:
        """Gemma 3 as docs/measurements.md has it: of the whole peak the wrong plan is 0.85."""
        planned = Planned.model_construct(working_bytes=working_megabytes * 10**6)
        probed = Probed.model_construct(loaded_bytes=567 * 10**6, peak_bytes=901 * 10**6)
        monkeypatch.setattr(checks, "FAMILIES", ("gemma3_text",))
        monkeypatch.setattr(checks, "make_family", lambda *_: tmp_path)
        log = SimpleNamespace(of=lambda kind: [planned if kind is Planned else probed])
        monkeypatch.setattr(checks, "_train", lambda *_, **__: log)
        if passes:
            assert checks.plans(CPU, tmp_path) == "gemma3_text +4%"
        else:
            with pytest.raises(CheckFailed, match="gemma3_text -24%; 15%"):
                checks.plans(CPU, tmp_path)


class TestTraining:
    def test_resume_and_out_of_memory_pass_on_a_cpu(self, tmp_path: Path) -> None:
        assert resume(CPU, tmp_path / "resume") == "difference 0.0e+00"
        assert "repeated" in out_of_memory(CPU, tmp_path / "short")

    def test_a_repetition_with_another_result_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hidden_states, calls = objective.hidden_states, []

        def other_after_a_while(*arguments: object) -> torch.Tensor:
            calls.append(arguments)
            return hidden_states(*arguments) * (1.0 if len(calls) < 12 else 0.5)  # type: ignore[arg-type]

        monkeypatch.setattr(objective, "hidden_states", other_after_a_while)
        with pytest.raises(CheckFailed):
            out_of_memory(CPU, tmp_path)


def test_the_budget_of_a_slot_is_checked_with_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a fake GPU of 24 GB: torch with and without the limit."""
    fraction = [1.0]

    def empty(size_bytes: int, **_: object) -> None:
        if size_bytes > fraction[0] * 24e9:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for name, replacement in {
        "mem_get_info": lambda device: (20_000_000_000, 24_000_000_000),
        "memory_allocated": lambda device: 0,
        "memory_reserved": lambda device: 0,
        "get_per_process_memory_fraction": lambda device: fraction[0],
        "set_per_process_memory_fraction": lambda value, device: fraction.__setitem__(0, value),
    }.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch, "empty", empty)
    assert checks.slot_budget(torch.device("cuda", 0), tmp_path).startswith("6.0 ")
    fraction[0] = 1.0
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda value, device: None)
    with pytest.raises(CheckFailed, match="is measured as"):
        checks.slot_budget(torch.device("cuda", 0), tmp_path)
