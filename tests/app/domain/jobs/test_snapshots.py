from __future__ import annotations

from app.domain.jobs.events import resume_message


class TestResumeMessage:
    def test_says_where_and_warns_of_what_was_passed_over(self) -> None:
        assert resume_message(3, []) == ("info", "Resuming from the snapshot of step 3")
        assert resume_message(3, ["a", "b"]) == ("warn", "Resuming from the snapshot of step 3; not usable: a; b")
        assert resume_message(None, ["a"])[0] == "warn"
        assert resume_message(None, [])[1] == "Starting from step 0: there is no snapshot to resume from"
