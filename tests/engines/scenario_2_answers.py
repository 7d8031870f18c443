"""The official client asks Tunery for the model that vLLM serves, and vLLM itself: the same answers."""

from __future__ import annotations

import http.client
import json
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.deadline import until
from tests.engines.vllm_server import MAX_MODEL_LEN, VllmServer, question
from tests.engines.world import MODEL, World

pytestmark = pytest.mark.timeout(900)  # on a busy machine

LOGPROB_ERROR = 0.1  # of two 16-bit passes, which batches and cached prompts change
LONG_TOKENS = 900
LONG = {"messages": question(), "max_tokens": LONG_TOKENS, "temperature": 0}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "route_ticket",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"team": {"type": "string", "enum": ["billing", "returns"]}},
            "required": ["team"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Served:
    """One model with its name in Tunery and in vLLM."""

    tunery: openai.OpenAI
    vllm: openai.OpenAI
    name: str
    name_in_vllm: str

    def both(self, ask: Callable[[openai.OpenAI, str], Any]) -> tuple[Any, Any]:
        """(Tunery's answer, vLLM's)."""
        return ask(self.tunery, self.name), ask(self.vllm, self.name_in_vllm)


@pytest.fixture(params=["tuned", "base"])
def served(world: World, request: pytest.FixtureRequest) -> Served:
    options: Any = {"timeout": 300, "max_retries": 0}
    tunery = openai.OpenAI(base_url=f"{world.service.url}/v1", api_key=world.service.key, **options)
    vllm = openai.OpenAI(base_url=f"{world.vllm.url}/v1", api_key="none", **options)
    return Served(tunery, vllm, *((world.model, world.model) if request.param == "tuned" else (MODEL, "base")))


@pytest.fixture
def tuned(world: World) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{world.service.url}/v1", api_key=world.service.key, timeout=300, max_retries=0)


def test_a_chat_has_the_answers_and_log_probabilities_of_vllm(served: Served) -> None:
    def ask(client: openai.OpenAI, model: str) -> Any:
        return client.chat.completions.create(
            model=model, messages=question(), temperature=0, max_tokens=24, logprobs=True, top_logprobs=3
        )

    ours, theirs = served.both(ask)
    (mine,), (its,) = ours.choices, theirs.choices
    assert ours.model == served.name
    assert mine.message.content
    assert (mine.message, mine.finish_reason) == (its.message, its.finish_reason)
    assert [each.token for each in mine.logprobs.content] == [each.token for each in its.logprobs.content]
    logprobs = [each.logprob for each in its.logprobs.content]
    assert [each.logprob for each in mine.logprobs.content] == pytest.approx(logprobs, abs=LOGPROB_ERROR)
    assert all(len(each.top_logprobs) == 3 for each in mine.logprobs.content)
    assert ours.usage.completion_tokens == theirs.usage.completion_tokens


def test_a_completion_has_the_answer_and_log_probabilities_of_vllm(served: Served) -> None:
    def ask(client: openai.OpenAI, model: str) -> Any:
        return client.completions.create(
            model=model, prompt="My parcel has", temperature=0, max_tokens=16, logprobs=2, echo=True
        )

    ours, theirs = served.both(ask)
    (mine,), (its,) = ours.choices, theirs.choices
    assert ours.model == served.name
    assert mine.text.startswith("My parcel has")
    assert (mine.text, mine.finish_reason, mine.logprobs.tokens) == (its.text, its.finish_reason, its.logprobs.tokens)
    assert mine.logprobs.token_logprobs[1:] == pytest.approx(its.logprobs.token_logprobs[1:], abs=LOGPROB_ERROR)


def test_a_stream_has_the_text_of_vllm(served: Served) -> None:
    def ask(client: openai.OpenAI, model: str) -> Any:
        options: Any = {"include_usage": True}
        chat = client.chat.completions.create(
            model=model, messages=question(), temperature=0, max_tokens=24, stream=True, stream_options=options
        )
        chunks = list(chat)
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        return text, chunks[-1].usage.completion_tokens, {chunk.model for chunk in chunks}

    ours, theirs = served.both(ask)
    assert ours[0]
    assert ours[:2] == theirs[:2]
    assert ours[2] == {served.name}


def test_a_named_tool_is_called(served: Served) -> None:
    def ask(client: openai.OpenAI, model: str) -> Any:
        answer = client.chat.completions.create(
            model=model,
            messages=question(),
            temperature=0,
            max_tokens=96,
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "route_ticket"}},
        )
        (call,) = answer.choices[0].message.tool_calls
        return call.function.name, json.loads(call.function.arguments)["team"]

    ours, theirs = served.both(ask)
    assert ours == theirs
    assert ours[0] == "route_ticket"
    assert ours[1] in ("billing", "returns")


def test_what_vllm_refuses_is_a_400_with_its_reason(tuned: openai.OpenAI, world: World) -> None:
    with pytest.raises(openai.BadRequestError, match="n must be 1 when using greedy sampling"):
        tuned.chat.completions.create(model=world.model, messages=question(), temperature=0, n=2)
    with pytest.raises(openai.BadRequestError) as raised:
        tuned.completions.create(model=world.model, prompt="parcel " * (2 * MAX_MODEL_LEN))
    assert raised.value.code == "context_length_exceeded"


def test_a_stream_that_the_client_closes_ends_in_vllm(tuned: openai.OpenAI, world: World) -> None:
    begun = world.vllm.generated_tokens()
    stream = tuned.chat.completions.create(model=world.model, stream=True, extra_body={"ignore_eos": True}, **LONG)
    assert next(iter(stream)).model == world.model
    stream.close()
    assert_ends_early(world.vllm, begun)


def test_a_whole_answer_that_the_client_does_not_await_ends_in_vllm(world: World) -> None:
    begun = world.vllm.generated_tokens()
    address = world.service.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=300)
    headers = {"authorization": f"Bearer {world.service.key}", "content-type": "application/json"}
    body = json.dumps({"model": world.model, "ignore_eos": True, **LONG})
    connection.request("POST", "/v1/chat/completions", body, headers)
    until(lambda: world.vllm.running() == 1 or is_answered(connection), "vLLM generates", 120)
    assert not is_answered(connection), connection.getresponse().read()
    connection.close()
    assert_ends_early(world.vllm, begun)


def is_answered(connection: http.client.HTTPConnection) -> bool:
    return bool(select.select([connection.sock], [], [], 0)[0])


def assert_ends_early(vllm: VllmServer, begun: float) -> None:
    until(lambda: vllm.running() == 0, "vLLM has ended the generation", 300)
    assert vllm.generated_tokens() - begun < LONG_TOKENS
