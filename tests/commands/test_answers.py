"""`tunery ask`: one prompt, through an engine to which the model was delivered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.fernet import Fernet

from app.cli.client.http import EVENT_STREAM
from app.db.engine import Sessions, transaction
from app.db.tables import Job
from app.settings import Settings
from app.storage import LocalStorage
from tests.answering_engine import TO_ENGINES, WORDS, AnsweringEngine, answering, deliver
from tests.commands.conftest import Tunery
from tests.factories import make_file, make_job, make_project, make_succeeded_job
from tests.receiver import receiving
from tests.sentences import Reviewed

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
    done = tunery("ask", model, "Where?", "--system", "Be brief.", "--max-tokens", "9")
    assert (done.exit_code, done.out) == (0, "".join(WORDS) + "\n"), done.err
    [asked] = engine_server.asked
    assert asked.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
    ]
    assert (asked.body["stream"], asked.body["max_tokens"]) == (True, 9)
    assert asked.body["temperature"] == 0
    tunery("ask", model, "Where is my parcel?", "--temperature", "0.7")
    assert engine_server.asked[1].body["temperature"] == 0.7


def test_a_job_stands_for_its_model(
    tunery: Tunery, sessions: Sessions, storage: LocalStorage, model: str, engine_server: AnsweringEngine
) -> None:
    with transaction(sessions) as session:
        job_id = session.query(Job.id).filter_by(fine_tuned_model=model).scalar()
        project = make_project(session)
        make_job(session, project, make_file(session, storage, project))  # newer, and without a model
    for text in ("@last", job_id, job_id[:14], job_id.removeprefix("ftjob-")[:12]):
        done = tunery("ask", text, "Where is my parcel?")
        assert (done.exit_code, done.out) == (0, "".join(WORDS) + "\n"), done.err
    assert len(engine_server.asked) == 4


def test_an_engine_that_dies_in_the_middle_is_an_error_after_its_text(
    tunery: Tunery, model: str, engine_server: AnsweringEngine
) -> None:
    engine_server.dies_after = 2
    done = tunery("ask", model, "Where is my parcel?")
    assert done.exit_code == 1
    assert done.out.startswith(WORDS[0])
    assert done.err.startswith("Error: ")


def test_an_answer_with_separators_of_lines_is_one_text(bare_tunery: Tunery) -> None:
    chunk = 'data: {"choices": [{"delta": {"content": "a\u2028b\x85c"}}]}\r\n\r\n'
    with receiving() as server:
        server.answers = [(200, {"Content-Type": EVENT_STREAM}, chunk.encode() + b"data: [DONE]\n\n")]
        done = bare_tunery("ask", "tiny", "Where?", env={"TUNERY_BASE_URL": f"http://127.0.0.1:{server.port}"})
    assert (done.exit_code, done.out) == (0, "a\u2028b\x85c\n"), done.err


@pytest.mark.parametrize(
    ("content_type", "event", "printed"),
    [
        *((EVENT_STREAM, event, "My") for event in (b"not json", b"{}", b'{"choices": [1]}')),
        (EVENT_STREAM, b'{"choices": [{"delta": 1}]}', "My"),
        (EVENT_STREAM, b'{"error": {"message": "It is full."}}', "My"),
        (EVENT_STREAM, b'{"error": "It is full."}', "My"),
        ("text/html", b"<p>Sign in</p>", ""),
    ],
)
def test_an_answer_that_is_no_completion_is_an_error(
    bare_tunery: Tunery, content_type: str, event: bytes, printed: str, reviewed: Reviewed
) -> None:
    with receiving() as server:
        first = b'data: {"choices": [{"delta": {"content": "My"}}]}\n\n'
        server.answers = [(200, {"Content-Type": content_type}, first + b"data: " + event + b"\n\n" + first)]
        address = f"http://127.0.0.1:{server.port}"
        done = bare_tunery("ask", "tiny", "Where?", env={"TUNERY_BASE_URL": address})
    assert (done.exit_code, done.out) == (1, printed)
    reviewed(done.err.replace(address, "URL"))
