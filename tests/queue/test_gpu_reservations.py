"""Reservations on a fake card in real SQL: never more than the card, whatever the order of claims, ends and losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text, update

from app.db.engine import Sessions, transaction
from app.db.jobs import claims, evaluations, jobs
from app.db.jobs.leases import lease_of
from app.db.scheduling import fair_queue
from app.db.tables import Attempt, Checkpoint, Evaluation, Job, Project
from app.domain.jobs.states import Reason
from app.domain.scheduling.worker_capacity import WorkerCapacity
from tests.factories import reap_expired
from tests.queue.test_fair_queue import add_job, add_project

GB = 10**9
SLOT = WorkerCapacity("cuda", 24 * GB, frozenset({"m"}), slots_per_gpu=2, gpu_uuids=("GPU-1",))
OTHER_GPU = replace(SLOT, gpu_uuids=("GPU-2",))
PAIR = replace(SLOT, gpus=2, gpu_uuids=("GPU-1", "GPU-2"))
SMALL, LARGE = 5 * GB, 15 * GB


@pytest.fixture
def card(sessions: Sessions) -> Sessions:
    with transaction(sessions) as session:
        add_project(session, "a")
    return sessions


def add(sessions: Sessions, *names: str, needed: int | None = SMALL) -> None:
    with transaction(sessions) as session:
        for name in names:
            add_job(session, name, "a", needed_cuda_bytes=needed)


def take(sessions: Sessions, owner: str, offer: WorkerCapacity = SLOT) -> str | None:
    with transaction(sessions) as session:
        job = claims.claim(session, "train", owner, 60, offer)
        return job.id if job else None


def end(sessions: Sessions, job_id: str, reason: Reason = Reason.OUT_OF_MEMORY) -> None:
    with transaction(sessions) as session:
        claims.finish_held_attempt(session, lease_of(session.get_one(Job, job_id)), reason, "over")


def lose(sessions: Sessions, job_id: str) -> None:
    """The lease of the job's worker expires."""
    with transaction(sessions) as session:
        past = func.clock_timestamp() - text("interval '1 second'")
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=past))


def cancel(sessions: Sessions, job_id: str) -> None:
    with transaction(sessions) as session:
        assert jobs.cancel(session, session.get_one(Job, job_id).project_id, job_id) is not None


def attempt_of(sessions: Sessions, job_id: str) -> Attempt:
    with transaction(sessions) as session:
        query = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.attempt.desc()).limit(1)
        return session.scalars(query).one()


class TestClaim:
    def test_an_attempt_has_the_budget_of_a_slot_and_a_gpu_as_many_of_them_as_slots(self, card: Sessions) -> None:
        add(card, "a0", "a1", "a2")
        assert [take(card, f"w{number}") for number in range(3)] == ["a0", "a1", None]
        attempt = attempt_of(card, "a0")
        assert (attempt.gpu_uuids, attempt.budget_bytes) == (["GPU-1"], SLOT.slot_bytes)
        assert (attempt.gpus, attempt.gpu_share) == (1, 0.5)
        assert take(card, "v0", OTHER_GPU) == "a2"

    def test_a_job_for_a_whole_gpu_excludes_all_others(self, card: Sessions) -> None:
        add(card, "a0", needed=LARGE)
        add(card, "a1")
        assert [take(card, "w0"), take(card, "w1")] == ["a0", None]
        attempt = attempt_of(card, "a0")
        assert (attempt.budget_bytes, attempt.gpu_share) == (24 * GB, 1.0)
        end(card, "a0")
        assert take(card, "w1") == "a1"

    def test_small_jobs_do_not_pass_a_job_for_a_whole_gpu(self, card: Sessions) -> None:
        add(card, "a0")
        add(card, "a1", needed=LARGE)
        add(card, "a2")
        assert [take(card, "w0"), take(card, "w1")] == ["a0", None]
        end(card, "a0")
        assert [take(card, "w1"), take(card, "w0")] == ["a1", None]
        end(card, "a1")
        assert take(card, "w0") == "a2"

    def test_a_job_on_several_gpus_takes_them_whole(self, card: Sessions) -> None:
        add(card, "a0", "a1", "a2")
        assert take(card, "v0", OTHER_GPU) == "a0"
        assert take(card, "p0", PAIR) is None
        end(card, "a0")
        assert take(card, "p0", PAIR) == "a1"
        assert [take(card, "w0"), take(card, "v0", OTHER_GPU)] == [None, None]
        attempt = attempt_of(card, "a1")
        assert (attempt.gpus, attempt.gpu_share, attempt.budget_bytes) == (2, 1.0, 24 * GB)

    def test_workers_without_slots_reserve_nothing(self, card: Sessions) -> None:
        add(card, "a0", "a1")
        alone = replace(SLOT, slots_per_gpu=1)
        assert [take(card, "w0", alone), take(card, "w1", alone)] == ["a0", "a1"]
        assert attempt_of(card, "a0").budget_bytes is None


class TestEnd:
    def test_the_reservation_of_a_lost_worker_ends_with_its_lease(self, card: Sessions) -> None:
        add(card, "a0", needed=LARGE)
        add(card, "a1")
        assert take(card, "w0") == "a0"
        assert take(card, "w1") is None
        lose(card, "a0")
        assert take(card, "w1") == "a1"

    def test_a_cancelled_job_keeps_its_memory_until_its_trainer_has_ended(self, card: Sessions) -> None:
        add(card, "a0", needed=LARGE)
        add(card, "a1")
        assert take(card, "w0") == "a0"
        cancel(card, "a0")
        assert take(card, "w1") is None
        with transaction(card) as session:
            fair_queue.count_usage(session)
        assert take(card, "w1") is None
        with transaction(card) as session:
            past = func.clock_timestamp() - text("interval '31 seconds'")
            session.execute(update(Attempt).where(Attempt.job_id == "a0").values(ended_at=past))
        assert take(card, "w1") == "a1"

    def test_the_slot_of_a_cancelled_job_claims_again_as_its_trainer_has_ended(self, card: Sessions) -> None:
        add(card, "a0", needed=LARGE)
        add(card, "a1")
        assert take(card, "w0") == "a0"
        cancel(card, "a0")
        assert take(card, "w0") == "a1"


class TestShare:
    def test_a_slot_counts_as_its_part_of_the_gpu(self, card: Sessions) -> None:
        with transaction(card) as session:
            add_project(session, "b")
            for project in "ab":
                add_job(session, f"{project}0", project, planned_seconds=1000.0, needed_cuda_bytes=SMALL)
        assert take(card, "w0", replace(SLOT, slots_per_gpu=1)) == "a0"
        assert take(card, "v0", OTHER_GPU) == "b0"
        with transaction(card) as session:
            names = {each.id: each.name for each in session.scalars(select(Project))}
            held = {names[each.project_id]: each.held for each in fair_queue.project_shares(session)}
        assert held["a"] == pytest.approx(1000, rel=0.05)
        assert held["b"] == pytest.approx(500, rel=0.05)


def add_evaluation(sessions: Sessions, name: str, job_id: str, precision: str = "trained") -> None:
    with transaction(sessions) as session:
        job = session.get_one(Job, job_id)
        session.add(
            Checkpoint(
                id=f"c-{name}", job_id=job_id, project_id=job.project_id, attempt=1, step_number=1, name=name,
                metrics={}, manifest={}, file_ids=[], archive_file_id="",
            )
        )  # fmt: skip
        session.flush()
        session.add(
            Evaluation(
                id=name, project_id=job.project_id, job_id=job_id, checkpoint_id=f"c-{name}", file_id="file-a",
                settings={"base_precision": precision}, model=name, base_model="m", step_number=1,
                adapter_file_ids=[], plan={},
            )
        )  # fmt: skip


def take_evaluation(sessions: Sessions, owner: str) -> str | None:
    with transaction(sessions) as session:
        evaluation = evaluations.claim(session, owner, 60, SLOT)
        return evaluation.id if evaluation else None


class TestEvaluations:
    def test_evaluations_reserve_memory_as_jobs_do(self, card: Sessions) -> None:
        add(card, "done", "a0", "a1")
        add_evaluation(card, "e0", "done")
        assert take_evaluation(card, "w0") == "e0"
        with transaction(card) as session:
            session.execute(update(Job).where(Job.id == "done").values(desired="pause"))
        assert [take(card, "w1"), take(card, "w2")] == ["a0", None]
        with transaction(card) as session:
            assert evaluations.cancel(session, session.get_one(Evaluation, "e0"))
        assert take(card, "w2") is None  # its process may not have ended yet
        assert take(card, "w0") == "a1"

    def test_an_evaluation_in_16_bits_needs_the_whole_gpu(self, card: Sessions) -> None:
        add(card, "a0", "a1")
        add_evaluation(card, "e0", "a1", "16-bit")
        assert take(card, "w0") == "a0"
        assert take_evaluation(card, "w1") is None
        end(card, "a0")
        assert take_evaluation(card, "w1") == "e0"
        assert take(card, "w0") is None


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["claim", "claim", "claim", "end", "lose", "cancel", "reap"]), st.integers(0, 6)),
    min_size=5,
    max_size=40,
)


@given(actions=ACTIONS, needs=st.lists(st.sampled_from([SMALL, LARGE, None]), min_size=8, max_size=8))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reservations_never_exceed_a_card(
    card: Sessions, actions: list[tuple[str, int]], needs: list[int | None]
) -> None:
    """Seven slots on two cards, more than `slots_per_gpu` allows: claims, ends, losses and cancels in any order."""
    offers = [SLOT, SLOT, SLOT, OTHER_GPU, OTHER_GPU, OTHER_GPU, PAIR]
    with transaction(card) as session:
        for table in ("job_events", "attempts", "jobs"):
            session.execute(text(f"DELETE FROM {table}"))
    for number, needed in enumerate(needs):
        add(card, f"a{number}", needed=needed)
    running: dict[int, str] = {}  # by slot, as each slot knows it
    stopping: dict[int, str] = {}  # cancelled, with a trainer that may still hold its memory
    for action, slot in actions:
        if action == "claim" and slot not in running:
            stopping.pop(slot, None)  # a slot claims when its trainer is gone
            if job_id := take(card, f"w{slot}", offers[slot]):
                running[slot] = job_id
        elif action == "reap":
            with transaction(card) as session:
                reap_expired(session, 100)
        elif slot in running and action == "cancel":
            stopping[slot] = running.pop(slot)
            cancel(card, stopping[slot])
        elif slot in running and action in ("end", "lose"):
            {"end": end, "lose": lose}[action](card, running.pop(slot))
        used = dict.fromkeys(PAIR.gpu_uuids, 0)
        for number, job_id in [*running.items(), *stopping.items()]:
            budget_bytes = attempt_of(card, job_id).budget_bytes
            assert budget_bytes is not None
            for uuid in offers[number].gpu_uuids:
                used[uuid] += budget_bytes
        assert max(used.values()) <= SLOT.memory_bytes
