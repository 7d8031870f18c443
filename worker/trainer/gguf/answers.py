"""Answers of the merged model, and the comparison of llama.cpp's answers with them.

The merged model answers a few prompts greedily. Both then evaluate each prompt with its answer in one pass, so every
position is compared after the same tokens: one early difference does not change the rest. The threshold of each
quantization lies between what was measured with right and with wrong files (docs/how-it-works/measurements.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.system.limited_rendering import limited_renderer
from worker.trainer.answers.generate import continue_prompts
from worker.trainer.gguf.llama_cpp import LlamaCppModel

ANSWER_TOKENS = 24
CONTEXT_TOKENS = 1024
QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Übersetze ins Englische: Das Wetter ist heute schön. 今日は天気がいいです。",
    "My order 4711 has not arrived. What should I do?",
    '{"task": "sort", "numbers": [3, 1, 2]}',
    "Explain photosynthesis in one sentence.",
    "List three prime numbers above 100, separated by commas.",
)
# The least share of answer tokens at which llama.cpp's most likely token is the merged model's.
MIN_AGREEMENT: Mapping[str, float] = {"F16": 0.90, "Q8_0": 0.88, "Q4_K_M": 0.70}
# An adapter's log-probabilities must be nearer to the merged model's than this share of the adapter's own effect.
MAX_SHARE_OF_EFFECT = 0.5
NOTICEABLE_EFFECT = 0.1  # a smaller mean difference between merged and base is too near to 16-bit noise (0.02)


class DifferentAnswers(Exception):
    """llama.cpp does not compute what the merged model computes; the message has the numbers."""


@dataclass(frozen=True)
class GreedyAnswer:
    """A prompt with the model's greedy answer, and what the model computes for each answer position."""

    prompt: str
    prompt_tokens: list[int]
    answer_tokens: list[int]
    most_likely: torch.Tensor
    logprobs: torch.Tensor  # of the answer's tokens


def greedy_answers(directory: Path, arguments: ChatTemplateArguments | None = None) -> list[GreedyAnswer]:
    """The answers of the model in `directory` to QUESTIONS, in the dtype of its files."""
    renderer = limited_renderer(directory).with_arguments(arguments)
    model = _load(directory)
    prompts = list(QUESTIONS)
    if renderer.template is not None:
        prompts = [renderer.text([{"role": "user", "content": question}], prompt=True) for question in QUESTIONS]
    prompt_tokens = [renderer.encode(prompt) for prompt in prompts]
    # All get ANSWER_TOKENS tokens, also beyond an answer's end.
    answer_tokens = continue_prompts(model, prompt_tokens, ANSWER_TOKENS, "cpu", 0, min_new_tokens=ANSWER_TOKENS)
    return [
        GreedyAnswer(*given, *_evaluate(model, *given[1:]))
        for given in zip(prompts, prompt_tokens, answer_tokens, strict=True)
    ]


def compare(model: LlamaCppModel, answers: Sequence[GreedyAnswer], quantization: str) -> dict[str, Any]:
    """Compare what llama.cpp computes for the answers with the merged model; return the figures.

    Raises DifferentAnswers.
    """
    agreements, differences = [], []
    for answer in answers:
        tokens = model.tokenize(answer.prompt)
        if tokens != answer.prompt_tokens:
            raise DifferentAnswers(
                f"llama.cpp divides the prompt {answer.prompt!r} into {len(tokens)} tokens that are not the "
                f"{len(answer.prompt_tokens)} of the model's tokenizer"
            )
        inputs = [*tokens, *answer.answer_tokens[:-1]]  # nothing follows the last token
        logits_A_V = torch.from_numpy(model.logits(inputs, start=len(tokens) - 1))
        most_likely, logprobs = _of_answer(logits_A_V, answer.answer_tokens)
        agreements.append(most_likely == answer.most_likely)
        differences.append((logprobs - answer.logprobs).abs())
    agreement, required = float(torch.cat(agreements).float().mean()), MIN_AGREEMENT[quantization]
    positions = sum(len(answer.answer_tokens) for answer in answers)
    if agreement < required:
        raise DifferentAnswers(
            f"llama.cpp has the merged model's most likely token at {agreement:.1%} of {positions} positions; at least "
            f"{required:.0%} are required of {quantization}"
        )
    return {
        "prompts": len(answers),
        "tokens": positions,
        "same_most_likely_token": round(agreement, 4),
        "required": required,
        "mean_logprob_difference": round(float(torch.cat(differences).mean()), 4),
    }


def require_effect(figures: dict[str, Any], answers: Sequence[GreedyAnswer], base: Path) -> dict[str, Any]:
    """Compare the difference in `figures` with the adapter's own effect on the base; return both.

    Raises DifferentAnswers for an adapter that llama.cpp loads without its effect.
    """
    model = _load(base)
    effects = [
        (_evaluate(model, answer.prompt_tokens, answer.answer_tokens)[1] - answer.logprobs).abs() for answer in answers
    ]
    effect = float(torch.cat(effects).mean())
    difference = figures["mean_logprob_difference"]
    if effect >= NOTICEABLE_EFFECT and difference > MAX_SHARE_OF_EFFECT * effect:
        raise DifferentAnswers(
            f"with the adapter, llama.cpp's log-probabilities differ from the merged model's by {difference:.3f} on "
            f"average, but the base model's only by {effect:.3f}: the adapter has no effect or a wrong one"
        )
    return figures | {"mean_effect_of_adapter": round(effect, 4)}


def _load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()


@torch.inference_mode()
def _evaluate(model: Any, prompt_tokens: list[int], answer_tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs_1_T = torch.tensor([prompt_tokens + answer_tokens[:-1]])
    return _of_answer(model(input_ids=inputs_1_T).logits[0, len(prompt_tokens) - 1 :].float(), answer_tokens)


def _of_answer(logits_A_V: torch.Tensor, tokens_A: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token at each answer position, and the log-probability of the answer's token."""
    logprobs_A_V = logits_A_V.log_softmax(dim=1)
    return logits_A_V.argmax(dim=1), logprobs_A_V.gather(1, torch.tensor(tokens_A).unsqueeze(1))[:, 0]
