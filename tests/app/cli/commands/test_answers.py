"""`tunery ask`: one prompt, through an engine to which the model was delivered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.fernet import Fernet

from app.db.engine import Sessions, transaction
from app.settings import Settings
from app.storage import LocalStorage
from tests.answering_engine import TO_ENGINES, WORDS, AnsweringEngine, answering, deliver
from tests.app.cli.conftest import Tunery
from tests.factories import make_project, make_succeeded_job

KEY = Fernet.generate_key().decode()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update=TO_ENGINES | {"secret_keys": type(settings.secret_keys)(KEY)})


@pytest.fixture
def engine_server() -> Iterator[AnsweringEngine]:
    with answering() as server:
        yield server


@pytest.fixture
def model(sessions: Sessions, storage: LocalStorage, base_model: str, engine_server: AnsweringEngine) -> str:
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, make_project(session))
        return deliver(session, job, engine_server.url, encryption_keys=[KEY]).model


def test_the_answer_is_streamed_to_standard_output(tunery: Tunery, model: str, engine_server: AnsweringEngine) -> None:
    done = tunery("ask", model, "Where is my parcel?", "--system", "Be brief.", "--max-tokens", "9")
    assert (done.exit_code, done.out) == (0, "".join(WORDS) + "\n"), done.err
    [asked] = engine_server.asked
    assert asked.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is my parcel?"},
    ]
    assert (asked.body["stream"], asked.body["max_tokens"]) == (True, 9)
    assert "temperature" not in asked.body


def test_an_engine_that_dies_in_the_middle_is_an_error_after_its_text(
    tunery: Tunery, model: str, engine_server: AnsweringEngine
) -> None:
    engine_server.dies_after = 2
    done = tunery("ask", model, "Where is my parcel?")
    assert done.exit_code == 1
    assert done.out.startswith(WORDS[0])
    assert done.err.startswith("Error: ")


def test_an_unknown_model_and_an_empty_prompt_are_refused(tunery: Tunery, model: str) -> None:
    unknown = tunery("ask", "ft:nothing", "Where is my parcel?")
    assert (unknown.exit_code, "ft:nothing" in unknown.err) == (3, True)
    assert tunery("ask", model, " ").exit_code == 2
