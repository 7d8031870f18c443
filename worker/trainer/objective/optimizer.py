"""AdamW in float32 (arXiv 1711.05101), the learning rate schedule, gradient division and gradient clipping."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from app.domain.jobs.spec import Hyperparameters
from worker.trainer.kernels.kernels import Memory
from worker.trainer.runtime.failures import SuppressOutOfMemory

BETAS = (0.9, 0.999)
EPSILON = 1e-8
NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")  # in lower-case names


def make_optimizer(
    named_parameters: Mapping[str, torch.nn.Parameter], hyperparameters: Hyperparameters
) -> torch.optim.AdamW:
    """Return AdamW with weight decay for all parameters but norms and biases, as transformers' Trainer has it."""
    decayed = [parameter for name, parameter in named_parameters.items() if not NOT_DECAYED.search(name.lower())]
    others = [parameter for name, parameter in named_parameters.items() if NOT_DECAYED.search(name.lower())]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=hyperparameters.learning_rate,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=hyperparameters.weight_decay,
        fused=True,
    )


def allocate_moments(optimizer: torch.optim.AdamW) -> None:
    """Allocate the moments that are missing, as the first step would: then no step runs out of memory in AdamW."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state.get(parameter):
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
                optimizer.state[parameter] = dict(zip(("step", "exp_avg", "exp_avg_sq"), (step, *moments), strict=True))


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


def update_parameters(optimizer: torch.optim.AdamW, memory: Memory) -> None:
    """Make the optimizer's step; repeat it once after freeing memory. It changes nothing before it has its memory."""
    with SuppressOutOfMemory():
        optimizer.step()
        return
    memory.free()
    optimizer.step()


def divide_gradients(parameters: Sequence[torch.nn.Parameter], denominator: float) -> None:
    """Turn the gradients of the summed loss into those of its mean over the step's tokens or examples; once."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_div_(gradients, denominator)


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> float:
    """Scale the gradients down to the norm `max_norm` if they exceed it. Returns the norm before (one device sync)."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True))
