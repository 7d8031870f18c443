"""AdamW (arXiv 1711.05101), the learning rate schedule, gradient division and gradient clipping.

The moments have float32, or blocks of 8 bits (arXiv 2110.02861).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from app.domain.jobs.spec import Hyperparameters
from worker.trainer.model.bitsandbytes_import import bitsandbytes

BETAS = (0.9, 0.999)
EPSILON = 1e-8
NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")  # in lower-case names


class AdamW8bit(bitsandbytes.optim.AdamW8bit):  # type: ignore[misc]  # untyped library
    """bitsandbytes' AdamW with moments in blocks of 256 numbers with 8 bits; tensors below 4,096 numbers keep float32.

    On a CPU its update allocates memory. If that runs out, some parameters are updated and the step cannot be repeated.
    """

    is_within_step = False

    def step(self, closure: None = None) -> None:
        self.is_within_step = True
        super().step(closure)
        self.is_within_step = False


def can_repeat_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer step that failed has changed nothing."""
    return not (isinstance(optimizer, AdamW8bit) and optimizer.is_within_step)


def make_optimizer(
    named_parameters: Mapping[str, torch.nn.Parameter], hyperparameters: Hyperparameters
) -> torch.optim.Optimizer:
    """Return AdamW with weight decay for all parameters but norms and biases, as transformers' Trainer has it."""
    decayed = [parameter for name, parameter in named_parameters.items() if not NOT_DECAYED.search(name.lower())]
    others = [parameter for name, parameter in named_parameters.items() if NOT_DECAYED.search(name.lower())]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {
        "lr": hyperparameters.learning_rate,
        "betas": BETAS,
        "eps": EPSILON,
        "weight_decay": hyperparameters.weight_decay,
    }
    if hyperparameters.optimizer == "adamw_8bit":
        return AdamW8bit(groups, **options)
    return torch.optim.AdamW(groups, fused=True, **options)


def allocate_moments(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the moments that are missing, as the first step would: then no step runs out of memory in AdamW."""
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if optimizer.state.get(parameter):
                continue
            if isinstance(optimizer, AdamW8bit):
                optimizer.init_state(group, parameter, number, index)
            else:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
                optimizer.state[parameter] = dict(zip(("step", "exp_avg", "exp_avg_sq"), (step, *moments), strict=True))


def moments_of(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """Return the state of a parameter for a snapshot; empty before its first step. The table of codes is constant."""
    state = optimizer.state.get(parameter, {})
    return {name: torch.as_tensor(value) for name, value in state.items() if not name.startswith("qmap")}


def restore_moments(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, saved: Mapping[str, torch.Tensor | None]
) -> None:
    """Restore what `moments_of` returned, in moments that are allocated; None stands for zeros."""
    for name, value in saved.items():
        state = optimizer.state[parameter]
        if isinstance(state[name], int):
            state[name] = int(value or 0)
        elif value is not None:
            state[name].copy_(value)


def learning_rate(hyperparameters: Hyperparameters, step: int, total_steps: int) -> float:
    """Return the learning rate of the step with index `step` (from 0): linear warm-up to the peak, then the schedule.

    The first step of the warm-up has a rate above zero: with zero its batch would have no effect.
    """
    peak = hyperparameters.learning_rate
    warmup = math.ceil(hyperparameters.warmup_ratio * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    match hyperparameters.lr_scheduler_type:
        case "linear":
            return peak * (1 - progress)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * progress))
        case "constant":
            return peak


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def divide_gradients(parameters: Sequence[torch.nn.Parameter], denominator: float) -> None:
    """Turn the gradients of the summed loss into those of its mean over the step's tokens or examples; once."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_div_(gradients, denominator)


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> float:
    """Scale the gradients down to the norm `max_norm` if they exceed it. Returns the norm before (one device sync)."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True))
