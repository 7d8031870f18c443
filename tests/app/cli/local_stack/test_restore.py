"""A service is backed up while it trains, lost, restored into a new data directory, and goes on with the job."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.deadline import until
from tests.stack import open_directory
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.up import Service
from tests.upgrade.make_fixtures import ENVIRONMENT, FREQUENT_SNAPSHOTS, LONG, Client, kill

SHORT_LEASES = {
    "TUNERY_LEASE_TTL_SECONDS": "20",
    "TUNERY_LEASE_RENEW_SECONDS": "3",
    "TUNERY_SELF_FENCE_SECONDS": "14",
    "TUNERY_SELF_FENCE_KILL_SECONDS": "17",
    "TUNERY_REAP_GRACE_SECONDS": "1",
}
RESUMED = re.compile(r"Resuming from the snapshot of step (\d+)")


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_running_job_goes_on_after_a_restore() -> None:
    with open_directory() as here, open_directory() as there:
        environment = ENVIRONMENT | FREQUENT_SNAPSHOTS | SHORT_LEASES
        lost, restored = Service(here, environment), Service(there, environment)
        backups, base = there / "backups", make_tiny_base(there / "tiny")
        try:
            lost.start()
            lost.tunery("models", "add", "tiny", str(base))
            job_id = back_up_while_training(lost, backups)
        finally:
            kill(lost)
        restored.tunery("restore", str(backups))
        shutil.copytree(lost.data / "models", restored.data / "models", dirs_exist_ok=True)  # saves a conversion
        try:
            restored.start()
            with Client(restored) as client:
                client.until_status(job_id, "succeeded")
                resumed = [int(found[1]) for text in client.messages(job_id) if (found := RESUMED.search(text))]
                assert len(resumed) == 1
                assert resumed[0] > 0
        finally:
            restored.stop()


def back_up_while_training(service: Service, backups: Path) -> str:
    """The id of a job that was running before and after the backup."""

    def has_snapshot() -> bool:
        stored = (service.data / "storage").rglob(f"{job_id}/**/step-*")
        return any(int(path.name.split("-")[1]) > 0 for path in stored)

    with Client(service) as client:
        training_file = client.upload(make_tiny_dataset(service.directory / "train.jsonl", 16))
        job_id = client.create(training_file, hyperparameters=LONG)
        until(has_snapshot, "a snapshot of a step is stored", 180)
        service.tunery("backup", str(backups))
        assert client.job(job_id)["status"] == "running", "the job ended before the backup: give it more steps"
    return job_id
