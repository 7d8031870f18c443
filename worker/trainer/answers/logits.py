"""What trial answers do with the scores of the next token before it is chosen. Letters: V tokens of the vocabulary."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from app.domain.answers.trial import TrialQuestion


class LogprobRecorder(LogitsProcessor):  # type: ignore[misc]
    """Keeps the log-probabilities of the next token. It is called before anything changes them."""

    def __init__(self) -> None:
        self.logprobs_V = torch.empty(0)

    def __call__(self, _: torch.Tensor, scores_1_V: torch.Tensor) -> torch.Tensor:
        self.logprobs_V = scores_1_V[0].float().log_softmax(-1)
        return scores_1_V


class PenaltiesAndBiases(LogitsProcessor):  # type: ignore[misc]
    """OpenAI's formula, of the tokens generated so far: score - count * frequency - (count > 0) * presence + bias."""

    def __init__(self, question: TrialQuestion, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._frequency, self._presence = question.frequency_penalty, question.presence_penalty
        self._biased = list(question.logit_bias)
        self._biases = list(question.logit_bias.values())

    def __call__(self, tokens_1_T: torch.Tensor, scores_1_V: torch.Tensor) -> torch.Tensor:
        counts_V = tokens_1_T[0, self._prompt_tokens :].bincount(minlength=scores_1_V.shape[-1])
        changed_1_V = scores_1_V - counts_V * self._frequency - (counts_V > 0) * self._presence
        changed_1_V[0, self._biased] += changed_1_V.new_tensor(self._biases)
        return changed_1_V
