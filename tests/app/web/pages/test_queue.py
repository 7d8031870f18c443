"""How the queue shows jobs."""

from __future__ import annotations

from app.web.pages.queue import JobCells

OWN, OTHER, UNKNOWN = "ftjob-00000000aaaa", "ftjob-11111111bbbb", "ftjob-22222222cccc"
CELLS = JobCells({OWN: "support-bot"}, {OWN: "tickets", OTHER: "search"})


def test_an_own_job_has_its_name_and_a_link() -> None:
    expected = {"text": "support-bot", "href": f"/jobs/{OWN}", "sub": "ftjob-00000000 · urgent"}
    assert CELLS.of(OWN, "urgent") == expected


def test_a_job_of_another_project_has_this_project() -> None:
    assert CELLS.of(OTHER, "urgent") == {"text": "ftjob-11111111", "sub": "project search · urgent"}


def test_a_job_that_has_left_the_queue_has_its_id() -> None:
    assert CELLS.of(UNKNOWN) == {"text": "ftjob-22222222", "sub": ""}
