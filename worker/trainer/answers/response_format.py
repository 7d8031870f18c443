"""Constraints on the next token of a trial answer: JSON, for which llguidance finds the tokens after which an answer
can still obey its schema, limits of time and memory for the compilation of a schema, kept by the kernel, penalties
and biases.

Letters: V tokens of the vocabulary.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from transformers import LogitsProcessor

from app.domain.answers.trial import MAX_SCHEMA_BYTES, MAX_SCHEMA_SECONDS, TrialQuestion
from app.domain.datasets.render import Renderer

# The style of `json.dumps`. With a choice of white space, a small model fills its answer with it.
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class SchemaRefused(Exception):
    """The message is the client's."""


class JsonGuide(LogitsProcessor):  # type: ignore[misc]
    """Excludes every token after which no answer obeys the schema; after the last brace only stop tokens are left."""

    def __init__(self, matcher: Any, prompt_tokens: int) -> None:
        """`matcher` is a new one of `JsonSchemas.matcher`."""
        self._matcher, self._consumed = matcher, prompt_tokens

    def __call__(self, tokens_1_T: torch.Tensor, scores_1_V: torch.Tensor) -> torch.Tensor:
        """Raises SchemaRefused if the schema turns out to be too complex."""
        self._matcher.consume_tokens(tokens_1_T[0, self._consumed :].tolist())
        self._consumed = tokens_1_T.shape[1]
        is_allowed_V = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        _check(self._matcher)
        return scores_1_V.masked_fill(~is_allowed_V[: scores_1_V.shape[-1]].to(scores_1_V.device), -torch.inf)


class JsonSchemas:
    """The schemas that answers of one base model can obey."""

    def __init__(self, renderer: Renderer, vocabulary: int) -> None:
        """`vocabulary` is the number of scores. Reading a tokenizer takes about a second. Raises SchemaRefused."""
        from llguidance import LLTokenizer  # 40 ms, which most answers do not need

        if not renderer.stop_ids:
            raise SchemaRefused("the base model has no token that ends an answer, so no form can be kept")
        size = max(vocabulary, renderer.tokenizer.get_vocab_size())
        try:
            self._tokens = LLTokenizer(renderer.tokenizer.to_str(), n_vocab=size, eos_token=renderer.stop_ids)
        except Exception as error:  # it has no class of its own
            raise SchemaRefused(f"not possible with the tokenizer of this base model ({error})") from error

    def matcher(self, schema: dict[str, Any]) -> Any:
        """A matcher at the beginning of an answer. Raises SchemaRefused for a schema with what cannot be kept.

        Ends this process for a schema that takes more than `schema_limits`.
        """
        from llguidance import LLMatcher

        with schema_limits():
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=STYLE)
            matcher = LLMatcher(self._tokens, grammar, log_level=0)
            matcher.compute_logit_bias()  # some schemas without any answer are found here
        _check(matcher)
        return matcher


def _check(matcher: Any) -> None:
    if matcher.is_error():
        reason = matcher.get_error().partition("\n<state>")[0]
        raise SchemaRefused(f"a trial answer cannot obey this schema ({reason})")


@contextmanager
def schema_limits(seconds: float = MAX_SCHEMA_SECONDS, size_bytes: int = MAX_SCHEMA_BYTES) -> Iterator[None]:
    """End this process if the block takes more CPU time (SIGPROF) or memory (SIGABRT, by Rust); see SCHEMA_SIGNALS.

    llguidance has no limit for the patterns of a schema: 16 of `.*a.*` in an `allOf` take 7 s, 20 take minutes and
    2.6 GB, in one call that nothing in this process can end. The steps of an answer have limits in the library.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + size_bytes, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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
