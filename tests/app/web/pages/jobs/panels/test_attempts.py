from __future__ import annotations

from app.domain.jobs.states import JobState, Reason
from app.web.pages.jobs.panels.attempts import REASONS


def test_each_reason_after_which_a_job_continues_has_a_sentence() -> None:
    failures = {reason for reason in Reason if reason.final_state is JobState.FAILED}
    assert set(Reason) - failures <= REASONS.keys()
