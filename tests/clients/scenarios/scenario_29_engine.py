"""29: a model that an engine serves, and an engine that dies: half an answer never looks like a whole one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from engine import WORDS, Engine, running_engine
from material import Created
from world import succeeded, until

QUESTION: Any = [{"role": "user", "content": "Where is my parcel?"}]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def model(default: openai.OpenAI, jobs: Created, engine: Engine) -> Iterator[str]:
    """An earlier checkpoint, which a delivery does not check: this engine computes nothing."""
    succeeded(default, jobs.main)
    checkpoint = default.fine_tuning.jobs.checkpoints.list(jobs.main).data[-1]
    target: Any = {"name": "scenario-29", "destination": {"kind": "vllm", "urls": [engine.url]}}
    made: Any = default.post("/delivery_targets", body=target, cast_to=object)
    url = f"/fine_tuning/jobs/{jobs.main}/deliveries"
    created: Any = default.post(url, body={"target": target["name"], "checkpoint": checkpoint.id}, cast_to=object)

    def is_delivered() -> bool:
        delivery: Any = default.get(f"{url}/{created['id']}", cast_to=object)
        assert delivery["error"] is None, delivery
        return bool(delivery["status"] == "delivered")

    until(is_delivered, "the delivery")
    yield checkpoint.fine_tuned_model_checkpoint
    default.delete(f"/delivery_targets/{made['id']}", cast_to=object)


def streamed(client: openai.OpenAI, model: str) -> Iterator[str]:
    """`with` closes a stream that ends with an error; openai 1.x leaves it to Python's garbage collector.

    That may close it during a later request, which then waits forever for its own lock (httpcore discussion 990).
    """
    with client.chat.completions.create(model=model, messages=QUESTION, stream=True) as stream:
        for chunk in stream:
            assert chunk.model == model
            yield chunk.choices[0].delta.content or ""


def test_a_whole_stream(client: openai.OpenAI, model: str, engine: Engine) -> None:
    engine.dies_after = None
    assert "".join(streamed(client, model)) == "".join(WORDS)


@pytest.mark.parametrize(
    "events", [1, len(WORDS), len(WORDS) + 1], ids=["in the middle", "before its end", "before [DONE]"]
)
def test_an_engine_that_dies_in_a_stream(client: openai.OpenAI, model: str, engine: Engine, events: int) -> None:
    engine.dies_after = events
    seen = []
    with pytest.raises(openai.APIError, match="stopped in the middle of its answer") as raised:
        seen.extend(streamed(client, model))
    assert raised.value.code == "engine_failed"


def test_an_engine_that_dies_before_its_answer(client: openai.OpenAI, model: str, engine: Engine) -> None:
    engine.dies_after = 0
    with pytest.raises(openai.InternalServerError) as raised:
        next(streamed(client.with_options(max_retries=0), model))
    assert (raised.value.status_code, raised.value.code) == (503, "engine_unavailable")
