"""The channel of trial answers in the real broker: turns of projects, and timeouts of connections."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis

from app import trial_queue
from app.domain.answers.trial import TrialQuestion
from app.settings import Settings
from app.trial_queue import PREFIX, SILENCE_SECONDS, TrialQueue, as_redis_py

Offer = Callable[..., None]
Ask = Callable[[str], Awaitable[bool]]


@pytest.fixture
def offer(settings: Settings) -> Iterator[Offer]:
    """`offer("slot", "model", ...)`: a slot becomes free."""
    with redis.Redis.from_url(as_redis_py(settings.redis_url)) as client:
        if keys := client.keys(f"{PREFIX}:*"):
            client.delete(*keys)  # type: ignore[misc]
        yield lambda slot="one", *models: client.set(f"{PREFIX}:idle:{slot}", json.dumps(models or ["tiny"]))


async def asking(settings: Settings, *asked: str | Callable[[], None]) -> list[bool]:
    """Whether each question got a slot: "project" or "project model". A function is called in between."""
    queue, found = TrialQueue(settings.redis_url), []
    for each in asked:
        if not isinstance(each, str):
            each()
            continue
        project, _, model = each.partition(" ")
        question = TrialQuestion(
            id="q", project_id=project, model=model or "tiny", messages=None, prompt="x", max_new_tokens=1,
            temperature=0, top_p=1, seed=None, stop=[],
        )  # fmt: skip
        found.append(await queue.ask(question, question.model))
    await queue.close()
    return found


def test_a_project_with_many_questions_leaves_the_next_slot_to_one_that_was_refused(
    settings: Settings, offer: Offer
) -> None:
    offer()
    found = asyncio.run(asking(settings, "a", *["a"] * 11, "b", offer, *["a"] * 11, "b", offer, "b", "a"))
    assert [number for number, is_taken in enumerate(found) if is_taken] == [0, 24, 26]


def test_a_project_alone_is_answered_again_and_again(settings: Settings, offer: Offer) -> None:
    assert asyncio.run(asking(settings, offer, "a", "a", offer, "a", offer, "a")) == [True, False, True, True]


def test_of_two_free_slots_each_project_gets_one(settings: Settings, offer: Offer) -> None:
    def two() -> None:
        offer("one")
        offer("two")

    assert asyncio.run(asking(settings, offer, "a", "b", two, "a", "a", "b")) == [True, False, True, False, True]


def test_a_slot_is_not_kept_for_a_model_that_it_does_not_have(settings: Settings, offer: Offer) -> None:
    assert asyncio.run(asking(settings, offer, "a", "b other", offer, "a")) == [True, False, True]


def test_a_turn_that_is_not_taken_expires(settings: Settings, offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_queue, "TURN_SECONDS", 0.0)
    assert asyncio.run(asking(settings, offer, "a", "b", offer, "a")) == [True, False, True]


def test_a_record_may_take_longer_than_the_librarys_timeout(settings: Settings) -> None:
    timeouts = TrialQueue(settings.redis_url)._client.connection_pool.connection_kwargs
    assert timeouts["socket_timeout"] > SILENCE_SECONDS


def test_every_client_of_the_broker_sets_both_timeouts() -> None:
    """redis-py has 5 s for both, which end a command that waits longer."""
    found = 0
    for package in ("app", "worker"):
        for path in Path(package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            for call in ast.walk(ast.parse(source)) if "from_url" in source else ():
                if not (
                    isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("Redis.from_url", "Pool.from_url"))
                ):
                    continue
                found += 1
                assert {"socket_timeout", "socket_connect_timeout"} <= {each.arg for each in call.keywords}, path
    assert found == 3
