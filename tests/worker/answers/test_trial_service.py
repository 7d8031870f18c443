"""The records of a trial answer, with a broker and a clock of the tests."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.db.fast_reads.pool import AsyncConnections
from app.domain.answers.trial import TrialQuestion, TrialRecord, TrialRequest, question_of
from app.errors import BadRequest, EngineUnavailable
from app.services.answers import trial
from app.trial_queue import TrialQueue

REQUEST = TrialRequest(model="tiny", messages=[{"role": "user", "content": "hi"}])
ALIVE = TrialRecord(id="q", type="alive")
END = TrialRecord(id="q", type="end")


class BrokerOfRecords:
    """Delivers the records, one a second."""

    def __init__(self, *records: TrialRecord) -> None:
        self._records = iter(records)
        self.seconds = 0.0

    async def ask(self, *_: Any) -> bool:
        return True

    async def next_record(self, *_: Any) -> TrialRecord | None:
        self.seconds += 1
        return next(self._records, None)

    async def give_up(self, _: str) -> None:
        pass


def answer(monkeypatch: pytest.MonkeyPatch, *records: TrialRecord, request: TrialRequest = REQUEST) -> dict[str, Any]:
    broker = BrokerOfRecords(*records)
    monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=lambda: broker.seconds, time=lambda: 0.0))
    question: TrialQuestion = question_of(request, "q", "proj", "tiny", request.messages is not None)
    connections = cast(AsyncConnections, None)
    answered = asyncio.run(trial.ask(connections, cast(TrialQueue, broker), question, request))
    return cast(dict[str, Any], json.loads(answered.body))


def test_a_pause_in_the_middle_is_no_end_while_the_worker_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [TrialRecord(id="q", type="text", text=text) for text in ("one", " two")]
    made = answer(monkeypatch, texts[0], *[ALIVE] * 60, texts[1], END)
    assert made["choices"][0]["message"]["content"] == "one two"


def test_a_worker_that_only_lives_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineUnavailable, match="within 180 s"):
        answer(monkeypatch, *[ALIVE] * 400)


@pytest.mark.parametrize(
    ("request_", "param"), [(REQUEST, "messages"), (TrialRequest(model="tiny", prompt="hi"), "prompt")]
)
def test_an_error_names_the_field_with_the_prompt(
    monkeypatch: pytest.MonkeyPatch, request_: TrialRequest, param: str
) -> None:
    long = TrialRecord(id="q", type="error", reason="context_length_exceeded", message="too long")
    with pytest.raises(BadRequest) as refused:
        answer(monkeypatch, long, request=request_)
    assert refused.value.param == param
