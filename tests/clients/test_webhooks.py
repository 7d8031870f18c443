"""The official client's own calls for webhooks, in both of its modes, with a real sender and a real receiver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.settings import Settings
from app.storage import LocalStorage
from tests.deadline import until
from tests.factories import chat_lines, finish_job, start_job, validate_job
from tests.receiver import Receiver, receiving
from tests.sending import TO_LOOPBACK, sending
from tests.serving import LiveServer

pytestmark = pytest.mark.usefixtures("base_model")
ENDED: Any = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update=TO_LOOPBACK)


@pytest.fixture
def receiver(settings: Settings) -> Iterator[Receiver]:
    with sending(settings) as receiver:
        yield receiver


@pytest.fixture(params=[False, True], ids=["lenient", "strict"])
def official(
    live_server: LiveServer, api_key: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[OpenAI]:
    """The client as it is, and in the mode that validates every answer."""
    monkeypatch.setenv("NO_PROXY", "*")
    with OpenAI(base_url=live_server.url, api_key=api_key, _strict_response_validation=request.param) as client:
        yield client


def test_everything_it_can_do_with_endpoints(official: OpenAI, receiver: Receiver) -> None:
    hooks = official.webhooks
    made = hooks.create(name="pipeline", url=receiver.url, event_types=ENDED)
    assert made.signing_secret.startswith("whsec_")
    assert hooks.retrieve(made.id).event_types == ENDED
    assert hooks.update(made.id, name="renamed", event_types=ENDED[:1]).name == "renamed"
    assert [one.id for one in hooks.list(limit=1)] == [made.id]
    rotated = hooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret
    assert ENDED[0] in hooks.event_types.list().data
    receiver.answers = [202]
    tested = hooks.test(made.id, event_type=ENDED[1])
    assert (tested.status_code, tested.success, tested.event_type) == (202, True, ENDED[1])
    for secret in (made.signing_secret, rotated.signing_secret):
        got = receiver.received[0]
        assert hooks.unwrap(got.body, got.headers, secret=secret).type == ENDED[1]
    assert hooks.delete(made.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        hooks.retrieve(made.id)


def test_the_ends_of_jobs_arrive_as_its_typed_events(
    official: OpenAI, receiver: Receiver, sessions: Sessions, storage: LocalStorage, project: Project
) -> None:
    made = official.webhooks.create(name="a", url=receiver.url, event_types=ENDED)
    file = official.files.create(file=chat_lines(), purpose="fine-tune")
    create = official.fine_tuning.jobs.create
    done = create(model="tiny", training_file=file.id)
    with transaction(sessions) as session:  # as a worker would
        validate_job(session)
        finish_job(session, storage, project, start_job(session))
    cancelled = official.fine_tuning.jobs.cancel(create(model="tiny", training_file=file.id).id)
    until(lambda: len(receiver.received) == 2, "both deliveries")
    events = [official.webhooks.unwrap(got.body, got.headers, secret=made.signing_secret) for got in receiver.received]
    received_events = {(type(event).__name__, event.data.id) for event in events}  # type: ignore[union-attr]
    assert received_events == {
        ("FineTuningJobSucceededWebhookEvent", done.id),
        ("FineTuningJobCancelledWebhookEvent", cancelled.id),
    }


def test_an_endpoint_that_cannot_be_reached_is_a_bad_request_with_the_reason(
    official: OpenAI, receiver: Receiver
) -> None:
    with receiving() as gone:
        pass
    made = official.webhooks.create(name="a", url=gone.url, event_types=ENDED)
    with pytest.raises(openai.BadRequestError, match="refused") as caught:
        official.webhooks.test(made.id, event_type=ENDED[0])
    assert caught.value.code == "webhook_unreachable"
    assert official.webhooks.retrieve(made.id).model_extra["enabled"] is True  # type: ignore[index]


def test_a_tampered_message_is_refused(official: OpenAI, receiver: Receiver) -> None:
    made = official.webhooks.create(name="a", url=receiver.url, event_types=ENDED)
    official.webhooks.test(made.id, event_type=ENDED[0])
    got = receiver.received[0]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        official.webhooks.unwrap(got.body + b" ", got.headers, secret=made.signing_secret)
