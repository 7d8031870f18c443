"""DPO loss, steps and reference, compared with a plain implementation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from app.system.artifact_directory import MANIFEST, sha256_file
from tests.trainer import plain_peft
from tests.trainer.helpers import (
    load_tiny_base,
    make_one_step,
    make_spec,
    no_keepalive,
    prepare,
    run_trainer,
)
from worker.trainer.adapter.lora import frozen_copy
from worker.trainer.data.batch import Pairs, pack_batches
from worker.trainer.objective.losses import dpo_loss
from worker.trainer.objective.objective import DpoObjective
from worker.trainer.training.loop import optimizer_step
from worker.trainer.training.state import Run, StepResult

BETA = 0.2

FLOAT32_LORA: dict[str, Any] = {"method": "dpo", "beta": BETA}


def trained(
    tiny: Path, pairs: Path, steps: int = 3, row_tokens: int = 2048, **changes: Any
) -> tuple[list[StepResult], Run]:
    """Make `steps` steps in float32 on a newly loaded base."""
    base = load_tiny_base(tiny, None)
    run = prepare(make_spec(tiny, pairs, **FLOAT32_LORA | changes), base, Path("unused"))
    return [make_one_step(base, run, row_tokens) for _ in range(steps)], run


class TestDpoLoss:
    """`dpo_loss` alone: token losses in, weights out."""

    PAIRS = Pairs(
        pair_N=torch.tensor([0, 0, 0, 1, 1]),
        sign_N=torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0]),
        count=2,
    )

    @pytest.mark.parametrize("beta", [0.1, 2.0])
    def test_equals_autograd_of_the_papers_formula(self, beta: float) -> None:
        generator = torch.Generator().manual_seed(0)
        losses = torch.rand(5, generator=generator).requires_grad_()
        reference = torch.rand(5, generator=generator)
        result = dpo_loss(self.PAIRS, beta, losses.detach(), reference)
        log_ratio = reference - losses
        margins = beta * torch.stack([log_ratio[0] + log_ratio[1] - log_ratio[2], log_ratio[3] - log_ratio[4]])
        (-F.logsigmoid(margins)).sum().backward()
        torch.testing.assert_close(result.weights_N, losses.grad)
        torch.testing.assert_close(result.margins_P.float(), margins.detach())
        torch.testing.assert_close(result.losses_P.float(), -F.logsigmoid(margins.detach()))

    def test_a_token_changes_no_other_pair(self) -> None:
        losses = torch.ones(5)
        broken = losses.clone()
        broken[3] = math.nan
        result = dpo_loss(self.PAIRS, 0.1, broken, losses)
        assert result.losses_P[0].item() == pytest.approx(math.log(2))
        assert result.losses_P[1].isnan()
        assert result.weights_N[:3].tolist() == pytest.approx([0.05, 0.05, -0.05])


class TestOptimizerStep:
    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT, of transformers
    def test_equals_a_plain_peft_loop_on_the_same_pairs(self, tiny: Path, pairs: Path) -> None:
        """The reference: log-softmax of all logits, PEFT with the adapter disabled, gradients by autograd."""
        changes = {"beta": 1.5, "batch_size": 5, "weight_decay": 0.1}
        steps, run = trained(tiny, pairs, **changes)
        theirs = _plain_dpo(tiny, run, make_spec(tiny, pairs, **FLOAT32_LORA | changes))
        assert [step.loss for step in steps] == pytest.approx(theirs["losses"], rel=1e-5)
        assert [step.reward_margin for step in steps] == pytest.approx(theirs["margins"], rel=1e-6, abs=1e-5)
        assert [step.grad_norm for step in steps] == pytest.approx(theirs["norms"], rel=1e-4)
        for name, parameter in run.adapter.named_parameters().items():
            torch.testing.assert_close(parameter.data, theirs["tensors"][name], rtol=1e-2, atol=1e-4)

    @pytest.mark.parametrize("changes", [{"row_tokens": 300}, {"packing": False}])
    def test_the_batch_length_never_changes_the_result_beyond_rounding(
        self, tiny: Path, pairs: Path, changes: dict[str, Any]
    ) -> None:
        one, other = trained(tiny, pairs, **changes), trained(tiny, pairs)
        assert [step.loss for step in one[0]] == pytest.approx([step.loss for step in other[0]], rel=1e-5)
        for mine, theirs in zip(one[1].parameters, other[1].parameters, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)

    def test_the_loss_is_divided_by_pairs(self, tiny: Path, pairs: Path) -> None:
        steps, run = trained(tiny, pairs, steps=3, batch_size=5)
        assert [step.denominator for step in steps] == [5, 5, 2]
        assert sum(step.labelled_tokens for step in steps) == run.dataset.labelled_tokens
        assert run.trained_tokens == run.dataset.tokens

    def test_a_frozen_copy_as_reference_stays_unchanged(self, tiny: Path, pairs: Path) -> None:
        base = load_tiny_base(tiny, None)
        run = prepare(make_spec(tiny, pairs, **FLOAT32_LORA), base, Path("unused"))
        with torch.no_grad():
            for parameter in run.parameters:
                parameter.add_(0.05)
        assert make_one_step(base, run).reward_margin != 0.0  # against the base model
        objective = DpoObjective(base, run.adapter, BETA, frozen_copy(run.adapter))
        first, second = (optimizer_step(run, objective, 2048, no_keepalive) for _ in range(2))
        assert first.loss == pytest.approx(math.log(2), abs=1e-12)
        assert second.reward_margin != 0.0  # the copy has not changed

    def test_the_reference_is_the_start_adapter_if_there_is_one(self, tiny: Path, pairs: Path, tmp_path: Path) -> None:
        _, log = run_trainer(make_spec(tiny, pairs, **FLOAT32_LORA), tmp_path)
        start = tmp_path / log.last.directory
        start_adapter = {"start_adapter": start, "start_adapter_sha256": sha256_file(start / MANIFEST)}
        base = load_tiny_base(tiny, None)
        run = prepare(make_spec(tiny, pairs, **FLOAT32_LORA, **start_adapter), base, Path("unused"))
        assert make_one_step(base, run).loss == pytest.approx(math.log(2), abs=1e-12)


class TestPackBatches:
    def test_a_pair_is_never_split_over_batches(self, tiny: Path, pairs: Path) -> None:
        run = prepare(make_spec(tiny, pairs, **FLOAT32_LORA), load_tiny_base(tiny, None), Path("unused"))
        for budget in (1, 150, 400, 5000):
            for packing in (True, False):
                batches = list(pack_batches(run.dataset, range(24), budget, packing=packing))
                assert sum(len(batch.document_lengths) for batch in batches) == 24
                for batch in batches:
                    assert batch.pairs is not None
                    assert len(batch.document_lengths) == 2 * batch.pairs.count
                    assert len(batch.document_lengths) == 2 or (packing and len(batch.tokens_T) <= budget)

    def test_a_pair_with_equal_documents_after_truncation_is_omitted(self, tiny: Path, tmp_path: Path) -> None:
        answers = [("yes", "no"), ("y" * 90, "y" * 90 + "no"), ("no", "yes")]
        lines = [
            {
                "input": {"messages": [{"role": "user", "content": "q"}]},
                "preferred_output": [{"role": "assistant", "content": one}],
                "non_preferred_output": [{"role": "assistant", "content": other}],
            }
            for one, other in answers
        ]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        spec = make_spec(tiny, tmp_path / "pairs.jsonl", context_length=64, **FLOAT32_LORA)
        run = prepare(spec, load_tiny_base(tiny, None), Path("unused"))
        assert list(run.dataset.lines) == [1, 3]


def _plain_dpo(tiny: Path, ours: Run, spec: Any) -> dict[str, Any]:
    start = prepare(spec, load_tiny_base(tiny, None), Path("unused")).adapter.named_parameters()
    model, named = plain_peft.peft_model(tiny, ours, start, None)
    margins_by_step = []

    def loss_of(step: int) -> torch.Tensor:
        margins = torch.stack([_plain_margin(model, ours, example) for example in ours.schedule.examples_of(step)])
        margins_by_step.append(spec.run.hyperparameters.beta * margins.mean().item())
        return -F.logsigmoid(spec.run.hyperparameters.beta * margins).mean()

    losses, norms = plain_peft.optimize(ours, named, loss_of)
    tensors = {name: parameter.detach() for name, parameter in named.items()}
    return {"losses": losses, "margins": margins_by_step, "norms": norms, "tensors": tensors}


def _plain_margin(model: Any, run: Run, example: int) -> torch.Tensor:
    preferred, other = run.dataset.documents(example)
    return _log_ratio(model, run, preferred) - _log_ratio(model, run, other)


def _log_ratio(model: Any, run: Run, document: int) -> torch.Tensor:
    policy = _log_likelihood(model, run, document)
    with torch.no_grad(), model.disable_adapter():
        reference = _log_likelihood(model, run, document)
    return policy - reference


def _log_likelihood(model: Any, run: Run, document: int) -> torch.Tensor:
    tokens, labelled = (torch.tensor(list(part)) for part in run.dataset.tokens_and_labels(document))
    log_p = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
    return log_p.gather(1, tokens[1:, None]).squeeze(1)[labelled[1:].bool()].sum()
