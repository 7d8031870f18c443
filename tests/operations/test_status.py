"""The state of the service as operators see it."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, update

from app.db.deliveries import deliveries
from app.db.engine import Sessions, transaction
from app.db.jobs import checkpoints, jobs
from app.db.operations import status
from app.db.tables import Attempt, Delivery, Job, Project
from app.db.webhooks import deliveries as webhook_deliveries
from app.db.webhooks import endpoints, operator
from app.domain.jobs.states import JobState
from app.domain.webhooks import DISABLED_BY_REQUEST
from app.services.deliveries import targets
from app.storage import LocalStorage
from tests.factories import (
    make_delivery,
    make_file,
    make_job,
    make_succeeded_job,
    make_webhook_endpoint,
    start_job,
    validate_job,
)


def test_the_oldest_due_job_of_each_queue_is_found(
    sessions: Sessions, project: Project, storage: LocalStorage, base_model: str
) -> None:
    with transaction(sessions) as session:
        first = make_job(session, project, make_file(session, storage, project))
        validate_job(session)
        second = make_job(session, project, make_file(session, storage, project))
        make_job(session, project, make_file(session, storage, project))
    with transaction(sessions) as session:
        assert [(each.state, each.job_id) for each in status.oldest_waiting(session)] == [
            (JobState.VALIDATING, second.id),
            (JobState.QUEUED, first.id),
        ]
        assert status.jobs_by_state(session)[JobState.VALIDATING] == 2
        jobs.pause(session, project.id, first.id)
    with transaction(sessions) as session:
        assert [each.state for each in status.oldest_waiting(session)] == [JobState.VALIDATING]


def test_leases_and_the_age_of_snapshots_are_those_of_running_jobs(
    sessions: Sessions, project: Project, storage: LocalStorage, base_model: str
) -> None:
    with transaction(sessions) as session:
        make_job(session, project, make_file(session, storage, project))
        validate_job(session)
        job = start_job(session)
        hour_ago = func.clock_timestamp() - timedelta(hours=1)
        session.execute(update(Attempt).values(started_at=hour_ago))
    with transaction(sessions) as session:
        assert 3600 <= status.oldest_snapshot_seconds(session) < 3700
        checkpoints.add_snapshot(session, session.get_one(Job, job.id), 5, "0" * 64, {})
    with transaction(sessions) as session:
        assert status.oldest_snapshot_seconds(session) < 60
        assert status.leases(session) == (1, 0)
        session.execute(update(Job).values(lease_expires_at=hour_ago))
    with transaction(sessions) as session:
        assert status.leases(session) == (1, 1)


def test_deliveries_are_due_until_they_are_claimed_and_fail_until_their_target_is_deleted(
    sessions: Sessions, project: Project, storage: LocalStorage, base_model: str
) -> None:
    with transaction(sessions) as session:
        delivery = make_delivery(session, make_succeeded_job(session, storage, project))
        target_id = delivery.target_id
        session.execute(update(Delivery).values(next_attempt_at=func.clock_timestamp() - timedelta(minutes=5)))
    with transaction(sessions) as session:
        backlog = status.delivery_backlog(session)
        assert (backlog.deliveries, 300 <= backlog.oldest_seconds < 400) == (1, True)
        deliveries.claim(session, 1, "sender", 60.0)
    with transaction(sessions) as session:
        assert status.delivery_backlog(session) == (0, 0.0)
        session.execute(update(Delivery).values(state="failed", error="away", next_attempt_at=None))
    with transaction(sessions) as session:
        assert len(status.failed_deliveries(session, timedelta(days=1), 20)) == 1
        targets.delete(session, project.id, target_id)
    with transaction(sessions) as session:
        assert status.failed_deliveries(session, timedelta(days=1), 20) == []
        assert not status.has_delivery_targets(session)


def test_endpoints_fail_until_a_success_and_not_if_they_were_disabled_by_request(
    sessions: Sessions, project: Project
) -> None:
    with transaction(sessions) as session:
        _, failing, gone, off = (
            make_webhook_endpoint(session, project.id, name=name).id for name in ("fine", "failing", "gone", "off")
        )
        for endpoint_id in (failing, off):
            webhook_deliveries.record_endpoint_failure(session, endpoint_id)
        endpoints.disable(session, gone, "410 Gone")
        endpoints.disable(session, off, DISABLED_BY_REQUEST)
        operator.set_endpoint(session, "https://example.com")
        webhook_deliveries.record_endpoint_failure(session, operator.ENDPOINT_ID)
    with transaction(sessions) as session:
        found = endpoints.failing(session, 20)
        assert [(each.id, each.project_name, each.failing_since is None, each.disabled_reason) for each in found] == [
            (failing, "default", False, None),
            (operator.ENDPOINT_ID, None, False, None),
            (gone, "default", True, "410 Gone"),
        ]
