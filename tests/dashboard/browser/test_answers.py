"""Try it: a chat with base model and adapter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.answering_engine import BASE, WORDS, AnsweringEngine
from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.world import World

ANSWER = "".join(WORDS)


@pytest.fixture
def engine(world: World) -> Iterator[AnsweringEngine]:
    world.engine.asked.clear()
    yield world.engine
    world.engine.gate.set()
    world.engine.dies_after = world.engine.fault = None


def ask(page: Page) -> None:
    page.get_by_label("Question").fill("Where is my parcel?")
    page.get_by_role("button", name="Ask both").click()


def test_both_answers_appear_side_by_side_as_they_are_generated(
    open_page: Open, world: World, engine: AnsweringEngine
) -> None:
    engine.gate.clear()
    page = open_page(f"/adapters/{world.jobs['succeeded']}")
    page.get_by_label("System prompt").fill("You are brief.")
    ask(page)
    base, adapter = (page.get_by_role("region", name=f"Answer of the {one}") for one in ("base model", "adapter"))
    expect(adapter.locator(".t-answer")).to_have_text(WORDS[0].strip())
    expect(adapter.get_by_role("status")).to_have_text("Answering ...")
    expect(base.get_by_role("status")).to_have_text("Waits for the adapter's answer ...")
    expect(base.locator(".t-answer")).to_be_hidden()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    engine.gate.set()
    for answer in (base, adapter):
        expect(answer.locator(".t-answer")).to_have_text(ANSWER)
        expect(answer.get_by_role("status")).to_contain_text("5 tokens in")
    expect(page.get_by_role("button", name="Ask both")).to_be_visible()
    first, second = (one.body for one in engine.asked)
    assert first["model"] != second["model"] == BASE
    assert first["messages"] == second["messages"]
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["temperature"] == 0


def test_the_next_question_continues_the_chat_of_each_model(
    open_page: Open, world: World, engine: AnsweringEngine
) -> None:
    engine.gate.set()
    page = open_page(f"/jobs/{world.jobs['succeeded']}")
    for _ in range(2):
        ask(page)
        answers = page.get_by_role("region", name="Answer of the")
        expect(answers.get_by_role("status").filter(has_text="5 tokens in")).to_have_count(2)
        expect(page.get_by_role("button", name="Ask both")).to_be_visible()
    assert [[one["role"] for one in each.body["messages"]] for each in engine.asked[2:]] == [
        ["user", "assistant", "user"]
    ] * 2
    expect(answers.first.locator(".t-message")).to_have_text(["Where is my parcel?", ANSWER])
    page.get_by_role("button", name="New chat").click()
    expect(answers.first.locator(".t-message")).to_have_count(0)
    expect(answers.first.locator(".t-answer")).to_be_hidden()


def test_stop_ends_the_answer_and_the_question_that_waits_for_it(
    open_page: Open, world: World, engine: AnsweringEngine
) -> None:
    engine.gate.clear()
    page = open_page(f"/adapters/{world.jobs['succeeded']}")
    ask(page)
    answers = page.get_by_role("region", name="Answer of the")
    expect(answers.get_by_text("Answering ...")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(answers.get_by_role("status").filter(has_text="Stopped.")).to_have_count(2)
    assert [one.body["model"] == BASE for one in engine.asked] == [False]


def test_an_answer_that_breaks_off_is_kept_and_named(open_page: Open, world: World, engine: AnsweringEngine) -> None:
    engine.dies_after = 2
    page = open_page(f"/adapters/{world.jobs['succeeded']}")
    ask(page)
    answer = page.get_by_role("region", name="Answer of the adapter")
    expect(answer.get_by_role("alert")).to_contain_text("No complete answer")
    expect(answer.locator(".t-answer")).to_have_text("My parcel")


def test_a_busy_worker_gets_the_request_again(open_page: Open, world: World, engine: AnsweringEngine) -> None:
    """As while the only idle worker answers somebody else's question."""
    body = b'{"error": {"message": "Every worker trains, or answers another request."}}'
    engine.fault = (429, {"retry-after": "1"}, body)
    engine.gate.set()
    page = open_page(f"/adapters/{world.jobs['succeeded']}")
    ask(page)
    answer = page.get_by_role("region", name="Answer of the adapter")
    expect(answer.get_by_role("status")).to_contain_text("Every worker is busy")
    engine.fault = None
    expect(answer.locator(".t-answer")).to_have_text(ANSWER)
    expect(answer.get_by_role("alert")).to_have_count(0)


def test_an_adapter_that_no_engine_has_says_what_to_do(open_page: Open, world: World) -> None:
    page = open_page(f"/adapters/{world.jobs['earlier']}")
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_text("Write a question first.")).to_be_visible()
    ask(page)
    answer = page.get_by_role("region", name="Answer of the adapter")
    expect(answer.get_by_role("alert")).to_contain_text("deliver")
