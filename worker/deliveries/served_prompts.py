"""What an engine computes for the expected answers: by teacher forcing, else from its own answers.

Teacher forcing gives the log-probability of every expected token. An engine, or a gateway in front of one, that has no
log-probabilities of prompts answers the same prompts greedily instead, as token ids through /v1/completions, else as
messages through /v1/chat/completions: what it generates equals the expected answer up to the first divergence, and its
log-probabilities are comparable up to there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

from app.domain.deliveries.served_check import ReferencePrompt, ServedPrompt, ServedReference
from worker.deliveries.destination import DeliveryError
from worker.deliveries.engine_server import EngineRefusal, Server

TOP_LOGPROBS = 5  # the most that OpenAI's contract has
OTHER = -1  # a token that no prompt expects
# A server without the call, or one that refuses the field.
NOT_SUPPORTED = frozenset({400, 404, 405, 422, 501})


class PromptEngine(Protocol):
    def prompt_logprobs(self, server: Server, base: str, adapter: str | None, prompt: Sequence[int]) -> list[Any]: ...

    def completion_model(self, base: str, adapter: str) -> dict[str, str]: ...


class _EngineAnswer(NamedTuple):
    """A greedy answer; `tokens` are the engine's texts of its tokens, `tops` {text: log-probability} by position."""

    ids: list[int]
    tokens: list[str]
    logprobs: list[float]
    tops: list[dict[str, float]]


def served_prompts(
    engine: PromptEngine, server: Server, base: str, adapter: str, reference: ServedReference
) -> list[ServedPrompt]:
    """The log-probabilities of the expected tokens under base model and adapter. Raises DeliveryError."""
    problems = []
    for method in (by_teacher_forcing, by_answers, by_chat):
        if method is by_chat and not any(prompt.messages for prompt in reference.prompts):
            break
        try:
            return [method(engine, server, base, adapter, prompt) for prompt in reference.prompts]
        except EngineRefusal as error:
            if error.status not in NOT_SUPPORTED:
                raise
            problems.append(str(error))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # the response lacks what the method needs
            problems.append(repr(error))
    raise DeliveryError(
        f"{server.url} returns no log-probabilities, neither of the prompt, nor of its own tokens with their ids "
        f"(return_token_ids), nor of a chat, so it cannot be checked: let `urls` lead to the engine itself "
        f"({'; '.join(problems)})"
    )


def by_teacher_forcing(
    engine: PromptEngine, server: Server, base: str, adapter: str, prompt: ReferencePrompt
) -> ServedPrompt:
    of_base = engine.prompt_logprobs(server, base, None, prompt.tokens)
    of_adapter = engine.prompt_logprobs(server, base, adapter, prompt.tokens)
    return ServedPrompt(
        [of_base[position][0] for position in prompt.positions],
        [of_adapter[position][0] for position in prompt.positions],
        [of_adapter[position][1] for position in prompt.positions],
    )


def by_answers(engine: PromptEngine, server: Server, base: str, adapter: str, prompt: ReferencePrompt) -> ServedPrompt:
    """The first answer of the conversation, up to where the engine's differs from the expected one."""
    start = prompt.positions[0]
    expected = [
        prompt.tokens[position]
        for number, position in takewhile(lambda each: each[1] == start + each[0], enumerate(prompt.positions))
    ]
    fields = {"prompt": prompt.tokens[:start], "max_tokens": len(expected)}
    of_base = _answer(server, {"model": base} | fields)
    of_adapter = _answer(server, engine.completion_model(base, adapter) | fields)
    agreeing = _common_length(of_adapter.ids, expected)
    return ServedPrompt(
        _logprobs_of_base(of_base, of_adapter, min(_common_length(of_base.ids, of_adapter.ids) + 1, agreeing)),
        of_adapter.logprobs[:agreeing],
        of_adapter.ids[: agreeing + 1],
        is_generated=True,
        is_answer_of_base=of_base.ids == of_adapter.ids,
        generated_effects=_effects(of_base, of_adapter, _common_length(of_base.ids, of_adapter.ids)),
    )


def by_chat(engine: PromptEngine, server: Server, base: str, adapter: str, prompt: ReferencePrompt) -> ServedPrompt:
    """As `by_answers`, for messages; tokens are compared by their texts. Nothing where the messages are not known."""
    if not prompt.messages:
        return ServedPrompt([], [], [], is_generated=True, is_answer_of_base=True, is_chat=True)
    fields = {"messages": prompt.messages, "max_tokens": len(prompt.answer)}
    of_base = _chat_answer(server, {"model": base} | fields)
    of_adapter = _chat_answer(server, engine.completion_model(base, adapter) | fields)
    agreeing = _common_length(of_adapter.tokens, prompt.answer)
    expected = [prompt.tokens[position] for position in prompt.positions]
    top = expected[:agreeing]
    # The id of the token that differs is not known. It is one that the trainer did not find most likely either, if that
    # was the expected one.
    if agreeing < min(len(of_adapter.tokens), len(prompt.answer)) and prompt.top[agreeing] == expected[agreeing]:
        top.append(OTHER)
    return ServedPrompt(
        _logprobs_of_base(of_base, of_adapter, min(_common_length(of_base.tokens, of_adapter.tokens) + 1, agreeing)),
        of_adapter.logprobs[:agreeing],
        top,
        is_generated=True,
        is_answer_of_base=of_base.tokens == of_adapter.tokens,
        is_chat=True,
        generated_effects=_effects(of_base, of_adapter, _common_length(of_base.tokens, of_adapter.tokens)),
    )


def _chat_answer(server: Server, fields: dict[str, Any]) -> _EngineAnswer:
    options = {"temperature": 0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    (choice,) = server.request("POST", "/v1/chat/completions", fields | options)["choices"]
    found = choice["logprobs"]["content"]
    tops = [{top["token"]: top["logprob"] for top in each["top_logprobs"]} for each in found]
    return _EngineAnswer([], [each["token"] for each in found], [each["logprob"] for each in found], tops)


def _answer(server: Server, fields: dict[str, Any]) -> _EngineAnswer:
    options = {"temperature": 0, "logprobs": TOP_LOGPROBS, "return_token_ids": True, "ignore_eos": True}
    (choice,) = server.request("POST", "/v1/completions", fields | options)["choices"]
    found = choice["logprobs"]
    answer = _EngineAnswer(choice["token_ids"], found["tokens"], found["token_logprobs"], found["top_logprobs"])
    if not len(answer.ids) == len(answer.tokens) == len(answer.logprobs) == len(answer.tops):
        raise ValueError("token_ids and logprobs have different lengths")
    return answer


def _logprobs_of_base(of_base: _EngineAnswer, of_adapter: _EngineAnswer, count: int) -> list[float]:
    """The base's log-probabilities of the first `count` tokens of the adapter's answer, fewer if its own is shorter.

    At the first position at which base model and adapter differ, the base's value is among its most likely ones, or
    below the last of them.
    """
    pairs = zip(of_base.tops[:count], of_adapter.tokens, strict=False)
    return [tops.get(token, min(tops.values())) for tops, token in pairs]


def _effects(of_base: _EngineAnswer, of_adapter: _EngineAnswer, count: int) -> list[float]:
    return [abs(base - adapter) for base, adapter in zip(of_base.logprobs[:count], of_adapter.logprobs, strict=False)]


def _common_length(left: Sequence[object], right: Sequence[object]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
