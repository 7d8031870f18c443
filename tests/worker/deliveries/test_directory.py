"""Deliveries into a directory: atomic, versioned, owned by one target, withdrawn."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import func, select, update

from app.db.engine import transaction
from app.db.jobs import evaluations
from app.db.tables import File
from app.domain.evaluations.summary import DeliveryVerdict
from app.system import artifact_directory
from app.system.artifact_directory import sha256_file
from tests.full_disk import small_disk
from tests.sentences import Reviewed
from tests.worker.deliveries.conftest import DeliveryHarness
from worker.deliveries.targets import KEPT_VERSIONS, OWNER, VERSIONS, EvaluationPending
from worker.jobs.evaluation_record import record_evaluation


def test_a_result_is_delivered_with_the_name_of_its_base_model(delivery: DeliveryHarness, reviewed: Reviewed) -> None:
    delivery.target({"kind": "directory", "path": str(delivery.shared)})
    job = delivery.trained_job("production")
    assert delivery.delivery(job).state == "pending"
    delivery.attempt_due()
    row, name = delivery.delivery(job), job.fine_tuned_model or ""
    assert (row.state, row.error, row.next_attempt_at) == ("delivered", None, None)
    manifest = artifact_directory.verify(delivery.shared / name)
    config = json.loads((delivery.shared / name / "adapter_config.json").read_text())
    assert config == {"r": 16, "base_model_name_or_path": job.base_model}
    assert manifest["step"] == 1
    reviewed(delivery.harness.messages(job)[-1].replace(name, "MODEL"))


EVALUATED = {"id": "fteval-1", "file": "file-1", "grader": "exact", "text": "2 of 3 held-out rows right."}


def test_the_manifest_has_the_evaluation_of_the_adapter(
    delivery: DeliveryHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "newest_headline", lambda *_: EVALUATED)
    job = delivery.deliver({"kind": "directory", "path": str(delivery.shared)})
    manifest = artifact_directory.verify(delivery.shared / (job.fine_tuned_model or ""))
    assert (manifest["evaluation"], manifest["step"]) == (EVALUATED, 1)


def test_the_card_has_the_evaluation_and_other_files_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("README.md", "model.safetensors"):
        (tmp_path / name).write_text(f"# {name}\n")
    artifact_directory.write_manifest(tmp_path, {"step": 3})
    read: list[str] = []
    monkeypatch.setattr(artifact_directory, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))
    record_evaluation(tmp_path, EVALUATED)
    assert read == ["README.md"]
    assert EVALUATED["text"] in (tmp_path / "README.md").read_text()
    manifest = artifact_directory.verify(tmp_path, sealed=True)
    assert (manifest["evaluation"], manifest["step"]) == (EVALUATED, 3)


def test_the_base_name_is_that_which_the_target_asks_for(delivery: DeliveryHarness) -> None:
    job = delivery.deliver({"kind": "directory", "path": str(delivery.shared), "base_name": "/models/base"})
    config = json.loads((delivery.shared / (job.fine_tuned_model or "") / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "/models/base"


def test_a_target_that_was_deleted_is_an_event_of_the_job(delivery: DeliveryHarness, reviewed: Reviewed) -> None:
    job = delivery.finished_job("gone")
    reviewed(delivery.harness.messages(job)[-1])


def test_a_served_name_is_replaced_and_the_earlier_delivery_ends(delivery: DeliveryHarness) -> None:
    delivery.target({"kind": "directory", "path": str(delivery.shared)}, served_model="bot")
    first, second = delivery.finished_job("production"), None
    delivery.attempt_due()
    before = (delivery.shared / "bot").resolve()
    second = delivery.deliver_next()
    assert (delivery.shared / "bot").resolve() != before
    assert before.exists()  # a reader may still have it open
    assert delivery.delivery(first).state == "withdrawn"
    assert delivery.delivery(first).error == f"replaced by {second.fine_tuned_model}"
    delivery.delete_model(first)  # does not touch what replaced it
    delivery.attempt_due()
    assert artifact_directory.verify(delivery.shared / "bot")
    assert delivery.delivery(second).state == "delivered"
    delivery.deliver_next()
    assert not before.exists()  # two versions are kept
    assert sum(each.is_dir() for each in before.parent.iterdir()) == KEPT_VERSIONS


def test_a_model_deleted_while_it_is_delivered_is_withdrawn_afterwards(delivery: DeliveryHarness) -> None:
    delivery.target({"kind": "directory", "path": str(delivery.shared)})
    job = delivery.finished_job("production")
    (claimed,) = delivery.sender.claim(10)
    delivery.delete_model(job)
    delivery.sender.attempt(claimed)  # its outcome is not recorded: the delivery has changed
    assert delivery.delivery(job).state == "withdrawing"
    delivery.attempt_due()
    assert delivery.delivery(job).state == "withdrawn"
    assert [path.name for path in delivery.shared.iterdir()] == [VERSIONS]
    assert list((delivery.shared / VERSIONS).iterdir()) == []


def test_an_evaluation_must_allow_a_delivery(delivery: DeliveryHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait for it counts as no try, and is one event."""
    verdicts = [*[DeliveryVerdict(None, "not ended")] * 12, DeliveryVerdict(False, "below the base")]
    monkeypatch.setattr(evaluations, "verdict_on_delivery", lambda *_: verdicts.pop(0))
    delivery.target({"kind": "directory", "path": str(delivery.shared)})
    job = delivery.finished_job("production")
    for tries, state, reason in [*[(0, "pending", "not ended")] * 12, (1, "failed", "below the base")]:
        delivery.attempt_due(again=True)
        row = delivery.delivery(job)
        assert (row.tries, row.state, reason in delivery.error(job)) == (tries, state, True)
        waits = row.next_attempt_at and (row.next_attempt_at - row.updated_at).total_seconds()
        assert waits is None or 0 < waits <= (EvaluationPending.uncounted_seconds or 0)
    assert sum("not ended" in text for text in delivery.harness.messages(job)) == 1
    assert list(delivery.shared.iterdir()) == []


def test_a_file_that_is_damaged_in_the_storage_is_not_delivered(delivery: DeliveryHarness) -> None:
    delivery.target({"kind": "directory", "path": str(delivery.shared)})
    job = delivery.finished_job("production")
    with transaction(delivery.harness.sessions) as session:
        key = session.scalars(select(File.storage_key).where(File.filename == "adapter_config.json")).one()
    path = delivery.harness.resources.settings.storage_dir / "objects" / key
    path.write_bytes(path.read_bytes().replace(b"16", b"17"))
    delivery.attempt_due()
    row = delivery.delivery(job)
    assert (row.state, "damaged" in delivery.error(job)) == ("pending", True)
    assert list(delivery.shared.iterdir()) == []


def test_an_adapter_whose_files_were_deleted_is_not_delivered(delivery: DeliveryHarness) -> None:
    delivery.target({"kind": "directory", "path": str(delivery.shared)})
    job = delivery.finished_job("production")
    with transaction(delivery.harness.sessions) as session:
        session.execute(update(File).where(File.filename == "adapter_config.json").values(deleted_at=func.now()))
    delivery.attempt_due()
    row = delivery.delivery(job)
    assert (row.state, "were deleted" in delivery.error(job)) == ("failed", True)
    assert list(delivery.shared.iterdir()) == []


@pytest.mark.parametrize("name", [".", "shared-too", "shared/link"])
def test_a_path_outside_of_the_allowed_directories_is_refused_at_once(delivery: DeliveryHarness, name: str) -> None:
    (delivery.shared.parent / "shared-too").mkdir()
    (delivery.shared / "link").symlink_to(delivery.shared.parent)
    job = delivery.deliver({"kind": "directory", "path": str(delivery.shared.parent / name)})
    row = delivery.delivery(job)
    assert (row.state, row.next_attempt_at) == ("failed", None)
    assert "TUNERY_DELIVERY_DIRECTORIES" in delivery.error(job)


def test_a_full_disk_is_named_and_keeps_no_part_of_the_adapter(delivery: DeliveryHarness, reviewed: Reviewed) -> None:
    with small_disk(delivery.shared / "disk", 8192) as disk:
        job = delivery.deliver({"kind": "directory", "path": str(disk.path)})
        row = delivery.delivery(job)
        assert row.state == "pending"
        reviewed(delivery.error(job))
        assert list(disk.path.rglob("*.staged")) == []


def test_two_targets_of_one_name_do_not_overwrite_each_other(delivery: DeliveryHarness, reviewed: Reviewed) -> None:
    for name in ("ours", "theirs"):
        delivery.target({"kind": "directory", "path": str(delivery.shared)}, name, served_model="bot")
    delivery.finished_job("ours")
    delivery.attempt_due()
    before = (delivery.shared / "bot").resolve()
    other = delivery.finished_job("theirs")
    delivery.attempt_due()
    row = delivery.delivery(other)
    assert row.state == "pending"
    reviewed(delivery.error(other))
    assert (delivery.shared / "bot").resolve() == before


def test_an_owner_that_was_never_written_is_replaced_after_a_minute(delivery: DeliveryHarness) -> None:
    """Its process was killed between the creation of the file and its content."""
    delivery.target({"kind": "directory", "path": str(delivery.shared)}, served_model="bot")
    owner = delivery.shared / VERSIONS / "bot" / OWNER
    owner.parent.mkdir(parents=True)
    owner.touch()
    job = delivery.deliver_next()
    assert "is being written" in delivery.error(job)
    os.utime(owner, (0, 0))
    delivery.attempt_due(again=True)
    assert (delivery.delivery(job).state, owner.read_text()) == ("delivered", delivery.delivery(job).target_id)


def test_a_directory_that_was_not_made_by_tunery_is_left_alone(delivery: DeliveryHarness, reviewed: Reviewed) -> None:
    (delivery.shared / "bot").mkdir()
    job = delivery.deliver({"kind": "directory", "path": str(delivery.shared)}, served_model="bot")
    reviewed(delivery.error(job))
    assert (delivery.shared / "bot").is_dir()


def test_attempts_are_counted_by_kind_and_outcome(delivery: DeliveryHarness) -> None:
    def counted(outcome: str) -> float:
        labels = {"kind": "directory", "outcome": outcome}
        return REGISTRY.get_sample_value("tunery_delivery_attempts_total", labels) or 0

    outcomes = ("delivered", "failed", "refused", "withdrawn")
    before = [counted(outcome) for outcome in outcomes]
    (delivery.shared / "file").mkdir()
    delivery.target({"kind": "directory", "path": str(delivery.shared)})
    delivery.target({"kind": "directory", "path": str(delivery.shared)}, "occupied", served_model="file")
    delivery.target({"kind": "directory", "path": "/elsewhere"}, "outside")
    job = delivery.finished_job("production", "occupied", "outside")
    delivery.attempt_due()
    delivery.delete_model(job)
    (delivery.shared / "file").rmdir()
    delivery.attempt_due()
    after = [counted(outcome) for outcome in outcomes]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 2, 2]
