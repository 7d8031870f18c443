"""The state machine: every ordered pair, and every reason."""

from __future__ import annotations

import itertools

import pytest

from app.domain.jobs.states import CRASHES, TERMINAL, TRANSITIONS, JobState, Reason

ALLOWED = {
    ("validating_files", "queued"), ("validating_files", "failed"), ("validating_files", "cancelled"),
    ("queued", "running"), ("queued", "paused"), ("queued", "failed"), ("queued", "cancelled"),
    ("running", "queued"), ("running", "paused"), ("running", "succeeded"), ("running", "failed"),
    ("running", "cancelled"), ("paused", "queued"), ("paused", "cancelled"),
}  # fmt: skip


@pytest.mark.parametrize(("current", "following"), list(itertools.product(JobState, JobState)))
def test_each_ordered_pair_is_allowed_or_not_as_the_design_says(current: JobState, following: JobState) -> None:
    assert (following in TRANSITIONS[current]) == ((current.value, following.value) in ALLOWED)


def test_nothing_follows_a_terminal_state() -> None:
    assert all(not TRANSITIONS[state] for state in TERMINAL)


def test_every_state_that_has_not_ended_can_be_cancelled() -> None:
    assert all((JobState.CANCELLED in TRANSITIONS[state]) for state in JobState if state not in TERMINAL)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_maps_to_one_state_that_may_follow_running_or_validating(reason: Reason) -> None:
    state = reason.final_state
    assert (state in TRANSITIONS[JobState.RUNNING]) or (state in TRANSITIONS[JobState.VALIDATING])


def test_a_crash_is_tried_again_by_itself() -> None:
    assert {reason.final_state for reason in CRASHES} == {JobState.QUEUED}


def test_other_repetitions_are_no_crashes() -> None:
    repeated = {reason for reason in Reason if reason.final_state == JobState.QUEUED}
    assert {str(reason) for reason in repeated - CRASHES} == {
        "drained", "gave_way", "slot_too_small", "storage_full", "storage_unavailable"
    }  # fmt: skip
