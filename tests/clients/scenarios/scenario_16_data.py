"""16 to 18: what a dataset may be. What is wrong with it fails the job, with the place in the message."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from material import Created, chats, lines, silent, user
from world import MODEL, finished, succeeded

GOOD = chats(9)
NO_ROLE = {"messages": [user("a"), {"content": "b"}]}
BAD: dict[str, tuple[list[Any], str, tuple[str, ...]]] = {
    "nine examples": (GOOD, "invalid_n_examples", ("9 example", "at least 10")),
    "a message without a role": ([*GOOD, NO_ROLE], "invalid_training_file", ("10", "message 2", "role")),
    "nothing to learn": ([silent(n) for n in range(10)], "invalid_training_file", ()),
}


@pytest.fixture(scope="session")
def failed(default: openai.OpenAI) -> dict[str, str]:
    """All of them at once: checking a file takes no trainer."""
    upload, create = default.files.create, default.fine_tuning.jobs.create
    ids = {}
    for name, (examples, _, _) in BAD.items():
        ids[name] = create(model=MODEL, training_file=upload(file=lines(examples), purpose="fine-tune").id).id
    return ids


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_the_data_fails_the_job(client: openai.OpenAI, failed: dict[str, str], name: str) -> None:
    _, code, words = BAD[name]
    job = finished(client, failed[name])
    assert (job.status, job.fine_tuned_model, job.result_files) == ("failed", None, [])
    assert job.error
    assert (job.error.code, job.error.param) == (code, "training_file"), job.error
    for word in words:
        assert word in job.error.message, job.error.message
    assert job.finished_at
    events = list(client.fine_tuning.jobs.list_events(job.id))
    assert (events[0].level, job.error.message in events[0].message) == ("error", True)


def test_tools_are_learned_and_what_has_weight_0_is_not(client: openai.OpenAI, jobs: Created) -> None:
    job = succeeded(client, jobs.masked)
    warnings = [event for event in client.fine_tuning.jobs.list_events(job.id, limit=100) if event.level == "warn"]
    assert len(warnings) == 1
    assert "12" in warnings[0].message, warnings[0].message
    assert job.trained_tokens
