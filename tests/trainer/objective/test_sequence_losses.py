"""Each loss and its gradient against TRL's on one micro-batch (trl_losses.json, by benchmarks/peer_trl_losses.py)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain import methods
from app.domain.jobs.spec import Hyperparameters
from tests.trainer.helpers import HYPERPARAMETERS
from worker.trainer.objective.sequence_losses import SEQUENCE_LOSSES, SequenceSums, losses_and_weights

TRL: dict[str, Any] = json.loads((Path(__file__).parent / "trl_losses.json").read_text())
METHODS = {"dpo": ("dpo", None), "ipo": ("dpo", "ipo"), "simpo": ("dpo", "simpo"), "orpo": ("orpo", None)} | {
    "kto": ("kto", None)
}


def hyperparameters(**changes: Any) -> Hyperparameters:
    names = ("beta", "simpo_gamma", "desirable_weight", "undesirable_weight")
    return Hyperparameters.model_validate(HYPERPARAMETERS | {name: TRL[name] for name in names} | changes)


def sums(name: str) -> SequenceSums:
    """TRL's sums in the order of `Sequences`."""
    policy, reference = (torch.tensor(TRL["answers"][each], dtype=torch.float64) for each in ("policy", "reference"))
    tokens = torch.tensor(TRL["answer_tokens"], dtype=torch.float64)
    roles = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)
    mean = torch.tensor(math.nan)
    if name == "kto":
        roles = torch.tensor([1.0 if label else -1.0 for label in TRL["labels"]], dtype=torch.float64)
        mismatched = (torch.tensor(TRL["mismatched"][each]).mean() for each in ("policy", "reference"))
        mean = next(mismatched) - next(mismatched)
    if name == "orpo":
        prompts = torch.tensor(TRL["prompts"][::2], dtype=torch.float64)
        prompt_tokens = torch.tensor(TRL["prompt_tokens"][::2], dtype=torch.float64)
        mean = (prompt_tokens + tokens[::2]).mean()
        policy = torch.cat((policy.view(-1, 2), prompts[:, None]), 1).flatten()
        tokens = torch.cat((tokens.view(-1, 2), prompt_tokens[:, None]), 1).flatten()
    return SequenceSums(policy, reference, tokens, roles, mean)


class TestAgainstTrl:
    @pytest.mark.parametrize("name", METHODS)
    def test_the_loss_and_its_gradient_are_equal(self, name: str) -> None:
        losses, _, weights = losses_and_weights(SEQUENCE_LOSSES[METHODS[name]], sums(name), hyperparameters())
        theirs = TRL["losses"][name]
        assert losses.mean().item() == pytest.approx(theirs["loss"], rel=1e-6)
        of_answers, of_prompts = zip(*theirs["gradients"], strict=True)
        expected = [*of_answers]
        if name == "orpo":
            expected = [each for i in (0, 2, 4) for each in (of_answers[i], of_answers[i + 1], of_prompts[i])]
        assert (-weights / len(losses)).tolist() == pytest.approx(expected, rel=1e-5)


class TestRegistry:
    def test_every_method_but_the_supervised_one_has_a_loss(self) -> None:
        assert {method for method, _ in SEQUENCE_LOSSES} == methods.METHODS.keys() - {"supervised"}

    @pytest.mark.parametrize(("method", "loss_type"), SEQUENCE_LOSSES)
    def test_a_loss_has_the_metrics_and_forwards_of_its_method(self, method: str, loss_type: str | None) -> None:
        loss, values = SEQUENCE_LOSSES[method, loss_type], hyperparameters(loss_type=loss_type)
        declared = methods.METHODS[method]
        assert losses_and_weights(loss, sums(method), values)[1].keys() == set(declared.metrics)
        assert declared.extra_forwards(values) == loss.needs_reference * (1 + 2 * loss.has_step_mean)


class TestEdges:
    @pytest.mark.parametrize("name", METHODS)
    def test_a_sequence_changes_no_other_example(self, name: str) -> None:
        whole, broken = sums(name), sums(name)
        broken.logps_S[0] = math.nan
        loss = SEQUENCE_LOSSES[METHODS[name]]
        expected, found = (losses_and_weights(loss, each, hyperparameters()) for each in (whole, broken))
        assert found[0][0].isnan()
        assert torch.equal(found[0][1:], expected[0][1:])
        others = len(whole.logps_S) // len(found[0])
        assert torch.equal(found[2][others:], expected[2][others:])

    def test_the_odds_of_a_certain_answer_are_finite(self) -> None:
        certain = sums("orpo")
        certain.logps_S[0] = 0.0
        losses, metrics, weights = losses_and_weights(SEQUENCE_LOSSES["orpo", None], certain, hyperparameters())
        assert all(each.isfinite().all() for each in (losses, *metrics.values(), weights))

    def test_a_negative_reference_point_of_kto_is_zero(self) -> None:
        one = torch.ones(1, dtype=torch.float64)
        found = SequenceSums(-one, -3 * one, one, one, torch.tensor(-5.0))
        losses, metrics, _ = losses_and_weights(SEQUENCE_LOSSES["kto", None], found, hyperparameters(beta=0.5))
        assert (metrics["kl"].item(), metrics["reward_desirable"].item()) == (0.0, 1.0)
        assert metrics["reward_undesirable"].isnan()
        assert losses.item() == pytest.approx(TRL["desirable_weight"] / (1 + math.e))
