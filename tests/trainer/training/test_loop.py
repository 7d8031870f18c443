from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.trainer import plain_peft
from tests.trainer.helpers import (
    FLOAT32,
    batches_of,
    load_tiny_base,
    make_one_step,
    make_spec,
    prepare,
    slow_but,
)
from worker.trainer.data.batch import PackedBatch
from worker.trainer.model.base_model import hidden_states
from worker.trainer.training.state import Run, StepResult

Training = tuple[list[StepResult], Run]


def trained(
    tiny: Path, examples: Path, steps: int = 4, *, row_tokens: int = 2048, four_bits: bool = True, **changes: Any
) -> Training:
    """Make `steps` steps in float32 on a newly loaded base."""
    base = load_tiny_base(tiny, FLOAT32 if four_bits else None)
    run = prepare(make_spec(tiny, examples, **changes), base, Path("unused"))
    return [make_one_step(base, run, row_tokens) for _ in range(steps)], run


def losses(training: Training) -> list[float]:
    return [step.loss for step in training[0]]


def assert_equal_within_rounding(one: Training, other: Training) -> None:
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)
    for mine, theirs in zip(one[1].parameters, other[1].parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


class TestOptimizerStep:
    @pytest.mark.parametrize("four_bits", [True, False])
    def test_step_0_has_the_loss_of_the_base_model(self, tiny: Path, examples: Path, four_bits: bool) -> None:
        base = load_tiny_base(tiny, FLOAT32 if four_bits else None)
        run = prepare(make_spec(tiny, examples), base, Path("unused"))
        (batch,) = run.batches(2048)
        with torch.no_grad():
            assert torch.equal(hidden_states(base, batch, run.adapter), hidden_states(base, batch))
        expected = _cross_entropy(hidden_states(base, batch) @ base.head_V_D.t(), batch)
        assert make_one_step(base, run).loss == pytest.approx(expected, rel=1e-5)

    def test_the_base_stays_unchanged_to_the_bit(self, tiny: Path, examples: Path) -> None:
        base = load_tiny_base(tiny)
        run = prepare(make_spec(tiny, examples), base, Path("unused"))
        before = [parameter.data.clone() for parameter in base.model.parameters()]
        scales = [layer.base.weight.quant_state.absmax.clone() for layer in base.layers.values()]
        start = [parameter.data.clone() for parameter in run.parameters]
        for _ in range(3):
            make_one_step(base, run)
        assert all(torch.equal(a, b) for a, b in zip(before, base.model.parameters(), strict=True))
        after = [layer.base.weight.quant_state.absmax for layer in base.layers.values()]
        assert all(torch.equal(a, b) for a, b in zip(scales, after, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(start, run.parameters, strict=True))

    @pytest.mark.parametrize("row_tokens", slow_but([150], [1, 150, 300], [1, 300]))
    def test_the_batch_length_never_changes_the_result_beyond_rounding(
        self, tiny: Path, examples: Path, row_tokens: int
    ) -> None:
        assert_equal_within_rounding(
            trained(tiny, examples, row_tokens=row_tokens), trained(tiny, examples, row_tokens=4096)
        )

    def test_packing_never_changes_the_result_beyond_rounding(self, tiny: Path, examples: Path) -> None:
        assert_equal_within_rounding(trained(tiny, examples, packing=False), trained(tiny, examples, packing=True))

    def test_the_loss_is_the_mean_over_labelled_tokens_not_over_examples(self, tiny: Path, examples: Path) -> None:
        base = load_tiny_base(tiny)
        run = prepare(make_spec(tiny, examples, batch_size=12), base, Path("unused"))
        by_example = []
        for document in range(12):
            (batch,) = batches_of(run, [document])
            with torch.no_grad():
                logits = hidden_states(base, batch, run.adapter) @ base.head_V_D.t()
            by_example.append((_cross_entropy(logits, batch), len(batch.targets_N)))
        of_tokens = sum(loss * tokens for loss, tokens in by_example) / sum(tokens for _, tokens in by_example)
        of_examples = sum(loss for loss, _ in by_example) / 12
        loss = make_one_step(base, run).loss
        assert loss == pytest.approx(of_tokens, rel=1e-5)
        assert loss != pytest.approx(of_examples, rel=1e-4)

    def test_it_counts_every_token_of_the_examples_and_no_others(self, tiny: Path, examples: Path) -> None:
        steps, run = trained(tiny, examples, steps=3, batch_size=4)
        assert run.trained_tokens == run.dataset.tokens == sum(step.tokens for step in steps)
        assert sum(step.labelled_tokens for step in steps) == run.dataset.labelled_tokens

    @pytest.mark.parametrize("dropout", [0.0, 0.2])
    def test_the_same_seed_gives_the_same_bits(self, tiny: Path, examples: Path, dropout: float) -> None:
        one, other = (trained(tiny, examples, dropout=dropout) for _ in range(2))
        assert losses(one) == losses(other)
        assert all(torch.equal(a, b) for a, b in zip(one[1].parameters, other[1].parameters, strict=True))

    def test_another_seed_gives_another_adapter(self, tiny: Path, examples: Path) -> None:
        one, other = trained(tiny, examples, seed=1), trained(tiny, examples, seed=2)
        assert not torch.equal(one[1].parameters[0], other[1].parameters[0])

    @pytest.mark.parametrize(
        "changes",
        [{"target_modules": ["q_proj", "v_proj"]}, {"weight_decay": 0.1, "warmup_ratio": 0.5, "max_grad_norm": 0.01}],
    )
    def test_a_run_equals_a_plain_peft_loop_on_the_same_batches(
        self, tiny: Path, examples: Path, changes: dict[str, Any]
    ) -> None:
        plain_peft.compare(tiny, examples, FLOAT32, 6, **changes)

    def test_a_loss_that_is_not_a_number_leaves_the_run_unchanged(self, tiny: Path, examples: Path) -> None:
        base = load_tiny_base(tiny)
        run = prepare(make_spec(tiny, examples), base, Path("unused"))
        make_one_step(base, run)
        with torch.no_grad():
            run.parameters[1][0, 0] = math.nan
        before = [parameter.data.clone() for parameter in run.parameters]
        step = make_one_step(base, run)
        assert not step.is_finite
        assert run.step == 1
        assert all(torch.equal(a, b) for a, b in zip(before[2:], run.parameters[2:], strict=True))
        assert all(parameter.grad is None for parameter in run.parameters)


def _cross_entropy(logits_T_V: torch.Tensor, batch: PackedBatch) -> float:
    return F.cross_entropy(logits_T_V[batch.logit_positions_N], batch.targets_N).item()
