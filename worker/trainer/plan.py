"""How many steps, which examples in each, how many tokens in a forward: arithmetic, decided before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from app.domain.spec import Hyperparameters
from worker.trainer.batch import permutation

CPU_ROW_TOKENS = 2048  # long enough that operator overhead is a few percent, short enough for 0.8 MB a token at 135M
CUDA_ROW_TOKENS = 8192  # dequantisation and launches are then at most 4 % on every card
LEAST_ROW_TOKENS = 512


@dataclass(frozen=True)
class Plan:
    """`step` counts optimizer steps that are done, so it is also the index of the next one."""

    examples: int
    batch_size: int
    total_steps: int
    seed: int
    eval_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    def examples_of(self, step: int) -> list[int]:
        """The batch of one step: the next `batch_size` of its epoch's permutation; the last one may be short."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = permutation(self.examples, self.seed, epoch)
        return list(order[position * self.batch_size : (position + 1) * self.batch_size])

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps: at each epoch's end, and at the very end."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.total_steps)

    def measures(self, step: int) -> bool:
        """Whether a validation is due after `step` steps: every `eval_steps`, else at epochs' ends; at the very end."""
        if self.eval_steps is None or step == self.total_steps:
            return self.ends_epoch(step)
        return step > 0 and step % self.eval_steps == 0


def make_plan(hyperparameters: Hyperparameters, examples: int, seed: int) -> Plan:
    """`max_steps`, where given, replaces the epochs as the end of training, as in other trainers."""
    steps_per_epoch = math.ceil(examples / hyperparameters.batch_size)
    total_steps = hyperparameters.max_steps or hyperparameters.n_epochs * steps_per_epoch
    return Plan(examples, hyperparameters.batch_size, total_steps, seed, hyperparameters.eval_steps)


def row_tokens(config: Any, free_cuda_bytes: int | None) -> int:
    """The token budget of one forward. It changes speed and memory, never a result beyond rounding.

    On CUDA, what fits into 60 % of the free memory when nothing is recomputed: 2 (12 d + 3 q + kv + 3 ff) bytes a
    token and layer.
    """
    if free_cuda_bytes is None:
        return CPU_ROW_TOKENS
    tokens = int(0.6 * free_cuda_bytes / _activation_bytes_per_token(config))
    return max(LEAST_ROW_TOKENS, min(CUDA_ROW_TOKENS, tokens))


def _activation_bytes_per_token(config: Any) -> int:
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries = config.num_attention_heads * head
    keys = (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head
    return int(config.num_hidden_layers * 2 * (12 * width + 3 * queries + keys + 3 * inner))
