"""Losses of sequences: functions of the sums of log-probabilities over answers, and of the numbers of their tokens.

Such a loss depends on the model only through these sums, so its gradient is that of a weighted sum of token losses.
The weight of a token is the derivative with respect to the sum of its sequence, by autograd on a few numbers, and
`linear_cross_entropy` takes the weights. A new method is one function here and one line in `SEQUENCE_LOSSES`.

The formulas are TRL's (trl 1.16.0). float64, because the sums of many small differences are compared.

Letters: S sequences of a batch, E examples of a batch, P its pairs (the examples of a method of pairs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812

from app.domain.jobs.spec import Hyperparameters

# ruff: noqa: N802, N815  shapes stand in names
LARGEST_MEAN = -1e-12  # of log p: the odds p / (1 - p) of an answer that is certain are infinite


@dataclass(frozen=True)
class SequenceSums:
    """Sums over the targets of each sequence of a batch, in nats; float64, in the order of `Sequences`."""

    logps_S: torch.Tensor  # log p of the model with the adapter
    reference_S: torch.Tensor  # log p of the reference; zeros for a method without one
    tokens_S: torch.Tensor
    roles_S: torch.Tensor
    # A mean over all examples of the step, in all packed batches and processes; a scalar without a gradient. ORPO: the
    # targets of a pair in its likelihood term. KTO: log p - log p of the reference, of mismatched documents.
    step_mean: torch.Tensor

    @property
    def log_ratios_S(self) -> torch.Tensor:
        return self.logps_S - self.reference_S


Metrics = dict[str, torch.Tensor]  # by name, a value of each example; NaN where the example has none
LossOfSums = Callable[[SequenceSums, Hyperparameters], tuple[torch.Tensor, Metrics]]  # losses_E, metrics


@dataclass(frozen=True)
class SequenceLoss:
    of_sums: LossOfSums
    needs_reference: bool = True
    has_step_mean: bool = False


@torch.no_grad()
def losses_and_weights(
    loss: SequenceLoss, sums: SequenceSums, hyperparameters: Hyperparameters
) -> tuple[torch.Tensor, Metrics, torch.Tensor]:
    """Return losses_E, the metrics and weights_S: the derivative of the summed losses by each sum of token losses."""
    with torch.enable_grad():
        logps_S = sums.logps_S.detach().requires_grad_()
        losses_E, metrics = loss.of_sums(replace(sums, logps_S=logps_S), hyperparameters)
        (gradient_S,) = torch.autograd.grad(losses_E.sum(), logps_S)
    of_examples = {name: values_E.detach() for name, values_E in metrics.items()}
    return losses_E.detach(), of_examples, -gradient_S  # a token loss is -log p


def dpo(sums: SequenceSums, hyperparameters: Hyperparameters) -> tuple[torch.Tensor, Metrics]:
    """Sigmoid loss (arXiv 2305.18290, equation 7)."""
    margins_P = _set(hyperparameters.beta) * _difference(sums.log_ratios_S)
    return -F.logsigmoid(margins_P), _rewards(margins_P)


def ipo(sums: SequenceSums, hyperparameters: Hyperparameters) -> tuple[torch.Tensor, Metrics]:
    """Squared loss (arXiv 2310.12036, equation 17), of means over tokens as its authors computed it."""
    beta, differences_P = _set(hyperparameters.beta), _difference(sums.log_ratios_S / sums.tokens_S)
    return (differences_P - 1 / (2 * beta)).square(), _rewards(beta * differences_P)


def simpo(sums: SequenceSums, hyperparameters: Hyperparameters) -> tuple[torch.Tensor, Metrics]:
    """Sigmoid loss without a reference (arXiv 2405.14734, equation 6), of means over tokens."""
    margins_P = _set(hyperparameters.beta) * _difference(sums.logps_S / sums.tokens_S)
    return -F.logsigmoid(margins_P - _set(hyperparameters.simpo_gamma)), _rewards(margins_P)


def orpo(sums: SequenceSums, hyperparameters: Hyperparameters) -> tuple[torch.Tensor, Metrics]:
    """Likelihood of prompt and preferred answer, and odds ratio of means over tokens (arXiv 2403.07691, equation 6).

    The likelihood is a mean over the tokens of the step, as TRL's is over those of its micro-batch.
    """
    beta = _set(hyperparameters.beta)
    logps_P_3, tokens_P_3 = sums.logps_S.view(-1, 3), sums.tokens_S.view(-1, 3)
    trained_P = logps_P_3[:, 0] + logps_P_3[:, 2]
    means_P_2 = (logps_P_3[:, :2] / tokens_P_3[:, :2]).clamp(max=LARGEST_MEAN)
    log_odds_P_2 = means_P_2 - torch.log(-torch.expm1(means_P_2))
    losses_P = -trained_P / sums.step_mean - beta * F.logsigmoid(_difference(log_odds_P_2))
    return losses_P, _rewards(beta * _difference(means_P_2))


def kto(sums: SequenceSums, hyperparameters: Hyperparameters) -> tuple[torch.Tensor, Metrics]:
    """Value of each answer above or below a reference point (arXiv 2402.01306, equation 8)."""
    desirable, undesirable = _set(hyperparameters.desirable_weight), _set(hyperparameters.undesirable_weight)
    beta, roles_E, reference_point = _set(hyperparameters.beta), sums.roles_S, sums.step_mean.clamp(min=0)
    margins_E = beta * roles_E * (sums.log_ratios_S - reference_point)
    weights_E = desirable * roles_E.relu() + undesirable * (-roles_E).relu()
    rewards_E = beta * sums.log_ratios_S
    return weights_E * torch.sigmoid(-margins_E), {
        "reward_desirable": rewards_E.where(roles_E > 0, math.nan),
        "reward_undesirable": rewards_E.where(roles_E < 0, math.nan),
        "kl": reference_point.expand_as(rewards_E),
    }


# By method and `loss_type`.
SEQUENCE_LOSSES: dict[tuple[str, str | None], SequenceLoss] = {
    ("dpo", None): SequenceLoss(dpo),
    ("dpo", "sigmoid"): SequenceLoss(dpo),
    ("dpo", "ipo"): SequenceLoss(ipo),
    ("dpo", "simpo"): SequenceLoss(simpo, needs_reference=False),
    ("orpo", None): SequenceLoss(orpo, needs_reference=False, has_step_mean=True),
    ("kto", None): SequenceLoss(kto, has_step_mean=True),
}


def _set(value: float | None) -> float:
    assert value is not None, "a spec of the method has its hyperparameters"
    return value


def _rewards(margins_P: torch.Tensor) -> Metrics:
    """Return the metrics of pairs, from by how much the model prefers the preferred answer (beta times nats)."""
    return {"reward_accuracy": (margins_P > 0).double(), "reward_margin": margins_P}


def _difference(values_S: torch.Tensor) -> torch.Tensor:
    """Return the value of the preferred answer minus that of the rejected one, for each pair."""
    preferred_P, rejected_P = values_S.view(-1, 2).unbind(1)
    return preferred_P - rejected_P
