"""A whole run on a CPU with what TUNERY_CUDA_KERNELS turns on: the same results."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.models.llama import modeling_llama

from app.domain.jobs.events import Command, Message
from tests.trainer.helpers import CPU_KERNELS, Trainings
from tests.trainer.kernels.fused_on_cpu import FUSED_ON_CPU, compile_by
from worker.trainer.data.batch import BatchesAhead
from worker.trainer.training import run as trainer


@pytest.mark.parametrize("backend", [None, pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of torch, where it imports its compiler
def test_a_run_has_the_losses_of_a_plain_one(
    train: Trainings, monkeypatch: pytest.MonkeyPatch, backend: str | None
) -> None:
    plain = train(dropout=0.2)
    compile_by(monkeypatch, backend)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    monkeypatch.setattr(trainer, "choose_kernels", lambda *_: FUSED_ON_CPU)
    log = train(dropout=0.2)
    assert any("TUNERY_CUDA_KERNELS" in message.message for message in log.of(Message))
    assert log.losses == pytest.approx(plain.losses, rel=1e-4)


def test_a_run_that_began_without_the_setting_resumes_without(
    train: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[bool] = []
    monkeypatch.setattr(trainer, "choose_kernels", lambda _device, wants: wanted.append(wants) or CPU_KERNELS)
    first = train(stop_at=(1, Command.DRAIN))
    assert train(resume_from=first.snapshot, cuda_kernels=True).code == 0
    assert wanted == [False, False, True, False]  # by the setting, then by the plan


class TestBatchesAhead:
    def test_the_next_step_is_made_while_one_computes_and_no_other(self) -> None:
        made: list[tuple[int, int]] = []

        def make(step: int, row_tokens: int) -> list[Any]:
            made.append((step, row_tokens))
            return [(step, row_tokens)]

        ahead = BatchesAhead(make, pin=False)
        assert ahead.of_step(0, 8, 3) == [(0, 8)]
        assert ahead.of_step(1, 8, 3) == [(1, 8)]
        assert ahead.of_step(1, 8, 3) == [(1, 8)]  # a repetition
        assert ahead.of_step(2, 4, 3) == [(2, 4)]  # with shorter batches, and no step after it
        ahead._thread.shutdown()
        assert sorted(made) == [(0, 8), (1, 8), (1, 8), (2, 4), (2, 8), (2, 8)]

    def test_an_error_is_raised_in_the_step_whose_batches_failed(self) -> None:
        def make(step: int, row_tokens: int) -> list[Any]:
            if step == 1:
                raise MemoryError("no memory for the batches")
            return []

        ahead = BatchesAhead(make, pin=False)
        assert ahead.of_step(0, 8, 3) == []
        with pytest.raises(MemoryError):
            ahead.of_step(1, 8, 3)
