"""Work that an earlier commit left in every state goes on under this code, without being asked for anything new.

The fixtures were written by make_fixtures.py with the code of that commit: `python -m tests.upgrade` makes them again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.cli.local_stack import first_run
from app.cli.local_stack.servers import LocalPostgres
from app.system import artifact_directory
from tests.deadline import until
from tests.receiver import Receiver, receiving
from tests.stack import open_directory
from tests.up import ROOT, Service
from tests.upgrade.make_fixtures import COMMIT, PG_DUMP, Client, environment
from tools.checkout import HOW_TO_FETCH, check_out, is_in_history

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.extended("data of an earlier commit: two starts of the service and twelve jobs"),
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # between PEFT and transformers: names that will change
]

FIXTURES = Path(__file__).parent / COMMIT
FACTS = json.loads((FIXTURES / "facts.json").read_text())
TIMESTAMP = re.compile(r"'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?\+00)'")
# The reconciler ends no attempt before PostgreSQL has been up for a lease: short ones, or it takes minutes.
SHORT_LEASES = {
    "TUNERY_LEASE_TTL_SECONDS": "20",
    "TUNERY_LEASE_RENEW_SECONDS": "3",
    "TUNERY_SELF_FENCE_SECONDS": "14",
    "TUNERY_SELF_FENCE_KILL_SECONDS": "17",
    "TUNERY_REAP_GRACE_SECONDS": "1",
    "TUNERY_SPARE_TRAINER": "false",  # it would import torch after the last job
}
AGE = timedelta(minutes=10)  # leases of 5 minutes have expired by then, the upload's hour has not


FINISHED_JOB = f"/fine_tuning/jobs/{FACTS['finished']}"
PATHS = {
    "validations": "/fine_tuning/jobs",
    "evaluations": f"{FINISHED_JOB}/evaluations",
    "exports": f"{FINISHED_JOB}/exports",
    "registrations": "/organization/base_model_registrations",
    "deliveries": f"{FINISHED_JOB}/deliveries",
}
ENDED = ("succeeded", "delivered", "failed", "cancelled", "withdrawn")


@contextmanager
def restored(receiver: Receiver, code: Path = ROOT, **settings: str) -> Iterator[Service]:
    """The service on a copy of the fixtures' data directory, as if they had been written ten minutes ago."""
    with open_directory() as directory:
        service = Service(directory, environment(directory) | settings, code)
        (directory / "delivered").mkdir()
        service.data.mkdir(mode=0o711)
        (service.data / "up.lock").touch()
        (service.data / "models" / first_run.BUNDLED_MODEL).mkdir(parents=True)  # or it is converted again
        for name in ("admin_key", "secret_keys"):
            (service.data / name.replace("_", "-")).write_text(FACTS[name] + "\n")
        for name, where in (("storage", service.data / "storage"), ("base", directory / "tiny")):
            with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
                archive.extractall(where, filter="data")
        load_database(service, receiver)
        try:
            service.start()
            yield service
        finally:
            service.stop()


def load_database(service: Service, receiver: Receiver) -> None:
    shift = datetime.now(UTC) - AGE - datetime.fromisoformat(FACTS["made_at"])

    def moved(found: re.Match[str]) -> str:
        return f"'{(datetime.fromisoformat(found[1]) + shift).isoformat(sep=' ')}'"

    sql = gzip.decompress((FIXTURES / "database.sql.gz").read_bytes()).decode()
    sql = TIMESTAMP.sub(moved, sql).replace("@DIRECTORY@", str(service.directory))
    sql = sql.replace("@RECEIVER@", f"127.0.0.1:{receiver.port}")
    server = LocalPostgres(service.data / "postgres")
    server.start()
    url = server.url.replace("postgresql+psycopg://", "postgresql://")
    try:
        psql = [str(PG_DUMP.with_name("psql")), "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", url]
        loaded = subprocess.run(psql, input=sql, capture_output=True, text=True)
        assert loaded.returncode == 0, loaded.stderr
    finally:
        server.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """The server to which both webhook endpoints send."""
    with receiving() as receiver:
        yield receiver


def succeed(client: Client, job_id: str) -> list[str]:
    """Wait until the job has succeeded. Return the messages of its events, oldest first."""
    client.until_job(job_id, lambda job: job["status"] in ("succeeded", "failed", "cancelled"), "has ended")
    job = client.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    return client.messages(job_id)


def download(client: Client, job_id: str, directory: Path) -> Path:
    directory.mkdir()
    checkpoint = client.send("GET", f"/fine_tuning/jobs/{job_id}/checkpoints")["data"][0]
    for file_id in checkpoint["result_files"]:
        name = client.send("GET", f"/files/{file_id}")["filename"]
        (directory / name).write_bytes(client.http.get(f"/files/{file_id}/content").content)
    artifact_directory.verify(directory)
    return directory


def load_in_peft(adapter: Path, base: Path) -> None:
    """PEFT finds a trained tensor for every target."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    trained = [tensor for name, tensor in model.named_parameters() if "lora_B" in name]
    assert trained
    assert all(torch.any(tensor != 0) for tensor in trained)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURES / "base.tar.xz") as archive:
        archive.extractall(tmp_path / "base", filter="data")
    return tmp_path / "base"


def test_everything_that_was_stored_goes_on(
    receiver: Receiver, base: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """One service for all subjects: a start takes a minute, and its first jobs are those of every subject."""
    with restored(receiver, **SHORT_LEASES) as service, Client(service) as client:
        with subtests.test("a queued job with patterns trains and shows what was requested"):
            succeed(client, FACTS["queued"])
            assert client.job(FACTS["queued"])["lora"]["rank_pattern"] == FACTS["asked"]["lora"]["rank_pattern"]
            load_in_peft(download(client, FACTS["queued"], tmp_path / "queued"), base)
        with subtests.test("a job whose worker died goes on from its snapshot"):
            messages = succeed(client, FACTS["killed"])
            assert client.job(FACTS["killed"])["attempts"] == 2
            assert len([each for each in messages if each.startswith("Step 1/")]) == 1  # not begun anew
        for kind in ("paused_sft", "paused_dpo"):
            with subtests.test("a paused job is resumed and PEFT loads its adapter", kind=kind):
                step = client.job(FACTS[kind])["progress"]["step"]
                client.send("POST", f"/fine_tuning/jobs/{FACTS[kind]}/resume")
                messages = succeed(client, FACTS[kind])
                assert not [each for each in messages if each.startswith(f"Step {step}/")][1:]  # none was repeated
                load_in_peft(download(client, FACTS[kind], tmp_path / kind), base)
        with subtests.test("a finished job keeps its checkpoints, archive and export"):
            check_finished_job(client)
        with subtests.test("a half-finished upload is completed"):
            complete_upload(client)
        with subtests.test("an idempotency key still answers with the job that it created"):
            assert client.create(FACTS["training_file"], FACTS["idempotency_key"], **FACTS["asked"]) == FACTS["queued"]
        for kind in PATHS:
            with subtests.test("a running row of a queue is claimed again and a waiting one too", kind=kind):
                check_rows(client, kind)
        with subtests.test("models whose registration went on are listed"):
            listed = {model["id"] for model in client.send("GET", "/models")["data"]}
            assert {"tiny-a", "tiny-b"} <= listed
        with subtests.test("a webhook that a sender held and one that failed are delivered"):
            until(lambda: types_of(receiver) >= {"fine_tuning.job.succeeded", "fine_tuning.job.cancelled"}, "both", 120)


def test_a_paused_job_of_two_processes_is_resumed(receiver: Receiver, base: Path, tmp_path: Path) -> None:
    job_id = FACTS["paused_parallel"]
    with restored(receiver, TUNERY_GPUS_PER_JOB="2") as service, Client(service) as client:
        client.send("POST", f"/fine_tuning/jobs/{job_id}/resume")
        succeed(client, job_id)
        load_in_peft(download(client, job_id, tmp_path / "adapter"), base)


@pytest.mark.slow
@pytest.mark.skipif(not is_in_history(COMMIT), reason=HOW_TO_FETCH)
def test_an_upgrade_is_undone_by_the_backup_that_was_made_before_it(receiver: Receiver, tmp_path: Path) -> None:
    """In the order of docs/operate/deploy.md: the backup with the earlier code, the upgrade, and the way back."""
    earlier = tmp_path / "code"
    check_out(COMMIT, earlier, "app", "worker", "migrations", "pyproject.toml")
    backups = tmp_path / "backups"
    with restored(receiver, earlier, **SHORT_LEASES) as service:
        newer = replace(service, code=ROOT, process=None)
        service.tunery("backup", str(backups))
        service.stop()
        newer.start()
        try:
            with Client(newer) as client:
                after_the_backup = client.create(FACTS["training_file"], **FACTS["asked"])
                succeed(client, FACTS["queued"])
        finally:
            newer.stop()
        service.directory = service.directory / "back"
        service.directory.mkdir()
        service.tunery("restore", str(backups))
        service.start()
        with Client(service) as client:
            check_finished_job(client)
            assert client.http.get(f"/fine_tuning/jobs/{after_the_backup}").status_code == 404
            succeed(client, FACTS["queued"])


def check_finished_job(client: Client) -> None:
    job = client.job(FACTS["finished"])
    checkpoints = client.send("GET", f"{FINISHED_JOB}/checkpoints")["data"]
    assert [checkpoint["step_number"] for checkpoint in checkpoints] == [12, 8, 4]
    archive = client.http.get(f"{FINISHED_JOB}/adapter/archive").content
    assert hashlib.sha256(archive).hexdigest() == job["adapter"]["sha256"]
    export = client.send("GET", f"{FINISHED_JOB}/exports/{FACTS['export']}")
    assert export["status"] == "succeeded"
    for file in export["files"]:
        assert hashlib.sha256(client.http.get(f"/files/{file['id']}/content").content).hexdigest() == file["sha256"]


def complete_upload(client: Client) -> None:
    path = f"/uploads/{FACTS['upload']}"
    part = client.send("POST", f"{path}/parts", files={"data": ("part", FACTS["upload_rest"].encode())})
    done = client.send("POST", f"{path}/complete", json={"part_ids": [FACTS["upload_first_part"], part["id"]]})
    whole = client.http.get(f"/files/{done['file']['id']}/content").content
    assert whole == client.http.get(f"/files/{FACTS['training_file']}/content").content


def check_rows(client: Client, kind: str) -> None:
    for row_id, attempts in zip(FACTS[kind], (2, 1), strict=True):
        path = f"{PATHS[kind]}/{row_id}"
        until(lambda path=path: client.send("GET", path)["status"] in ENDED, f"{row_id} has ended", 500)
        row = client.send("GET", path)
        assert row["status"] in ("succeeded", "delivered"), row["error"]
        if "attempts" in row and kind != "validations":  # those of a job count its trainings
            assert row["attempts"] == attempts


def types_of(receiver: Receiver) -> set[str]:
    return {json.loads(message.body)["type"] for message in receiver.received}
