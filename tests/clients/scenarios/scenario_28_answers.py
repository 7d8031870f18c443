"""28: asking the model that was trained, with the same client: whole, streamed, and a stream that is cut.

No engine serves it here, so an idle worker answers on trial, one request at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import openai
import pydantic
import pytest
from material import Created
from world import succeeded, until

QUESTION: Any = [{"role": "user", "content": "say 3"}]
TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def model(default: openai.OpenAI, jobs: Created) -> str:
    for job in (jobs.plain, jobs.dpo, jobs.masked, jobs.main):  # a worker that trains answers nothing
        done = succeeded(default, job)
    return str(done.fine_tuned_model)


def asked(client: openai.OpenAI, model: str, **more: Any) -> Any:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "timeout": 120} | more
    return of_idle_worker(lambda: client.chat.completions.create(model=model, messages=QUESTION, **options))


def continued(client: openai.OpenAI, model: str, **more: Any) -> Any:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "timeout": 120} | more
    return of_idle_worker(lambda: client.completions.create(model=model, prompt="say 3", **options))


def of_idle_worker(ask: Callable[[], Any]) -> Any:
    """The first answer that is no refusal of a busy worker."""

    def try_once() -> Any:
        with contextlib.suppress(openai.RateLimitError):
            return ask()
        return None

    return until(try_once, "an idle worker")


def test_the_trained_model_answers(client: openai.OpenAI, model: str) -> None:
    answer = asked(client, model)
    assert (answer.object, answer.model) == ("chat.completion", model)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_has_the_same_text(client: openai.OpenAI, model: str) -> None:
    whole = asked(client, model).choices[0].message.content
    chunks = list(asked(client, model, stream=True))
    assert {chunk.model for chunk in chunks} == {model}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_a_stream_that_is_cut_leaves_the_worker_free(client: openai.OpenAI, model: str) -> None:
    stream = asked(client, model, stream=True)
    assert next(iter(stream)).model == model
    stream.close()
    assert asked(client, model).choices[0].message is not None


def test_several_choices_with_log_probabilities(client: openai.OpenAI, model: str) -> None:
    answer = asked(client, model, n=2, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert len(tokens) in range(1, 9)
        assert all(token.top_logprobs[0].logprob == token.logprob for token in tokens)  # it is greedy
    chunks = asked(client, model, n=2, logprobs=True, stream=True)
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


def test_a_text_is_continued(client: openai.OpenAI, model: str) -> None:
    answer = continued(client, model, logprobs=1)
    assert (answer.object, answer.model) == ("text_completion", model)
    (choice,) = answer.choices
    assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) in range(1, 9)
    assert [list(top.values()) for top in choice.logprobs.top_logprobs] == [
        [logprob] for logprob in choice.logprobs.token_logprobs
    ]


def test_a_stream_of_a_continued_text(default: openai.OpenAI, model: str) -> None:
    """Not by the strict client: OpenAI's own chunks have a null `finish_reason` too, which its type excludes."""
    chunks = list(continued(default, model, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == continued(default, model).choices[0].text
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_tools_are_in_the_prompt(client: openai.OpenAI, model: str) -> None:
    plain, asked_with_tools = asked(client, model), asked(client, model, tools=TOOLS)
    assert asked_with_tools.usage.prompt_tokens > plain.usage.prompt_tokens
    assert asked_with_tools.choices[0].message.role == "assistant"
    assert asked(client, model, tools=TOOLS, tool_choice="none").usage.prompt_tokens == plain.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=model, messages=QUESTION, tools=TOOLS, tool_choice="required")
    assert raised.value.param == "tool_choice"


class Ticket(pydantic.BaseModel):
    label: Literal["refund", "card"]
    is_open: bool


def test_an_answer_in_the_form_of_a_class(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"response_format": Ticket, "max_tokens": 256, "temperature": 0, "timeout": 120}
    parsed = of_idle_worker(lambda: client.chat.completions.parse(model=model, messages=QUESTION, **options))
    answer = parsed.choices[0]
    assert isinstance(answer.message.parsed, Ticket)
    assert (answer.message.refusal, answer.finish_reason) == (None, "stop")


def test_penalties_and_biases(client: openai.OpenAI, model: str) -> None:
    biased = asked(client, model, frequency_penalty=2, presence_penalty=-2, logit_bias={"5": -100}, logprobs=True)
    assert len(biased.choices[0].logprobs.content) in range(1, 9)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=model, messages=QUESTION, frequency_penalty=2.5)
    assert raised.value.param == "frequency_penalty"
