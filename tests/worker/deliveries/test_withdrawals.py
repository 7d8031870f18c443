"""A deleted model leaves its targets, whatever happened before, and takes nothing else with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from app.db.deliveries import deliveries
from app.db.engine import transaction
from app.db.jobs import checkpoints
from app.db.operations import status
from app.db.tables import Delivery, DeliveryTarget, Job
from app.services import base_models
from app.services.deliveries import deliveries as requests
from app.services.deliveries import targets
from app.system import artifact_directory
from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3 import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, S3Server
from tests.sentences import Reviewed
from tests.worker.deliveries.conftest import REFERENCE, DeliveryHarness
from tests.worker.engine_stand_in import EngineStandIn, serving_engine

SECRETS = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}


def objects(rclone: S3Server, prefix: str) -> list[Path]:
    directory = rclone.log.parent / "objects" / BUCKET / prefix
    return [path for path in directory.rglob("*") if path.is_file()]


class TestModelDeletedDuringADelivery:
    @pytest.mark.parametrize(
        "uploaded", [2, *(pytest.param(n, marks=pytest.mark.extended("ends at another file")) for n in (1, 3))]
    )
    def test_half_an_upload_is_withdrawn(self, delivery: DeliveryHarness, rclone: S3Server, uploaded: int) -> None:
        proxy, prefix = FaultyProxy(rclone), f"half-{uploaded}"
        proxy.fault = Fault(methods=("PUT",), status=403, code="AccessDenied", skip=uploaded)
        destination = {"kind": "s3", "bucket": BUCKET, "prefix": prefix, "endpoint_url": proxy.endpoint}
        with proxy.running():
            job = delivery.deliver(destination, secrets=SECRETS)
            assert (delivery.delivery(job).state, len(objects(rclone, prefix))) == ("pending", uploaded)
            delivery.withdraw(job)
        assert (delivery.delivery(job).state, objects(rclone, prefix)) == ("withdrawn", [])


class TestRequestsAtTheSameTime:
    def test_a_delivery_that_a_sender_has_just_claimed_is_withdrawn(self, delivery: DeliveryHarness) -> None:
        delivery.target({"kind": "directory", "path": str(delivery.shared)})
        job = delivery.finished_job("production")
        with transaction(delivery.harness.sessions) as session:
            row = session.scalars(select(Delivery)).one()
            (claimed,) = delivery.sender.claim(10)
            deliveries.withdraw(session, row)
        delivery.sender.attempt(claimed)
        assert delivery.delivery(job).state == "withdrawing"
        delivery.attempt_due()
        assert (delivery.delivery(job).state, list(delivery.shared.glob("*"))) == (
            "withdrawn",
            [delivery.shared / ".tunery"],
        )

    def test_a_model_is_not_deleted_while_its_delivery_is_requested(self, delivery: DeliveryHarness) -> None:
        target = delivery.target({"kind": "directory", "path": str(delivery.shared)})
        job, sessions = delivery.finished_job(), delivery.harness.sessions
        project_id, model = delivery.harness.project.id, job.fine_tuned_model or ""
        with transaction(sessions) as requesting:
            requests.create(requesting, job, target.name, None)
            with sessions() as deleting:
                deleting.execute(text("SET LOCAL lock_timeout = '50ms'"))
                with pytest.raises(OperationalError, match="lock timeout"):
                    base_models.delete(deleting, project_id, model)
        delivery.delete_model(job)
        assert delivery.delivery(job).state == "withdrawn"


class TestDeletedTarget:
    def delivered_to_a_deleted_target(self, delivery: DeliveryHarness) -> Job:
        target = delivery.target({"kind": "directory", "path": str(delivery.shared)})
        job = delivery.deliver_next()
        with transaction(delivery.harness.sessions) as session:
            targets.delete(session, target.project_id, target.id)
        return job

    def test_a_withdrawal_from_it_ends_with_a_remedy(self, delivery: DeliveryHarness, reviewed: Reviewed) -> None:
        job = self.delivered_to_a_deleted_target(delivery)
        delivery.withdraw(job)
        row = delivery.delivery(job)
        assert (row.state, row.next_attempt_at) == ("failed", None)
        reviewed(delivery.error(job))
        assert (row.error or "?") in delivery.harness.messages(job)[-1]
        with transaction(delivery.harness.sessions) as session:
            assert status.delivery_backlog(session).deliveries == 0

    def test_a_delivery_requested_at_the_same_time_fails(self, delivery: DeliveryHarness, reviewed: Reviewed) -> None:
        job = self.delivered_to_a_deleted_target(delivery)
        with transaction(delivery.harness.sessions) as session:
            (result,) = checkpoints.kept(session, job.id)
            target = session.get_one(DeliveryTarget, delivery.delivery(job).target_id)
            deliveries.create(session, job, result, target)
        delivery.attempt_due()
        assert delivery.delivery(job).state == "failed"
        reviewed(delivery.error(job))

    def test_a_withdrawal_in_progress_leaves_the_reason(self, delivery: DeliveryHarness, reviewed: Reviewed) -> None:
        with serving_engine(EngineStandIn("vllm")) as server:
            shared = {"urls": [server.url], "shared_path": str(delivery.shared)}
            target = delivery.target({"kind": "vllm"} | shared)
            job = delivery.deliver_next()
        delivery.delete_model(job)
        with transaction(delivery.harness.sessions) as session:
            targets.delete(session, target.project_id, target.id)
        assert delivery.delivery(job).state == "failed"
        reviewed(delivery.error(job))


class TestOneNameForSeveralAdapters:
    """Job 1 is served under the name of the target; the delivery of job 2 failed, and its model is deleted."""

    def test_the_engine_keeps_the_adapter_before(self, delivery: DeliveryHarness) -> None:
        with serving_engine(EngineStandIn("vllm", REFERENCE)) as server:
            destination = {"kind": "vllm", "urls": [server.url], "shared_path": str(delivery.shared)}
            delivery.deliver(destination, served_model="bot", reference=REFERENCE)
            served, server.difference = dict(server.loaded), 0.1
            job = delivery.deliver_next(REFERENCE)
            assert (delivery.delivery(job).state, server.loaded) == ("failed", served)
            delivery.withdraw(job)
            assert (delivery.delivery(job).state, server.loaded) == ("withdrawn", served)
        assert artifact_directory.verify(delivery.shared / "bot")
        assert [path.name for path in (delivery.shared / "bot").resolve().parent.iterdir() if path.is_dir()] == [
            (delivery.shared / "bot").resolve().name
        ]

    def test_a_deleted_model_that_took_the_name_ends_the_delivery_before(self, delivery: DeliveryHarness) -> None:
        first = delivery.deliver({"kind": "directory", "path": str(delivery.shared)}, served_model="bot")
        second = delivery.finished_job("production")
        (claimed,) = delivery.sender.claim(10)
        delivery.delete_model(second)
        delivery.sender.attempt(claimed)
        assert delivery.delivery(first).error == f"replaced by {second.fine_tuned_model}"
        delivery.attempt_due()
        assert delivery.delivery(second).state == "withdrawn"
        assert not (delivery.shared / "bot").exists()
