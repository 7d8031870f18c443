"""The adapter that was judged: for users its card and manifest name its newest evaluation, and nothing else changes."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import tunery
from sqlalchemy import func, select, text, update

from app.db import files
from app.db.engine import transaction
from app.db.jobs import evaluations
from app.db.operations import retention
from app.db.tables import Checkpoint, Evaluation, File, Job, RetentionRule
from app.domain.operations.retention import RetentionKind
from app.services.operations import integrity
from app.settings import Settings
from app.storage import Storage
from app.storage.s3 import S3Storage
from app.system import artifact_directory
from tests.commands.trained import make_trained_job, write_adapter
from tests.s3 import S3Server, with_prefix
from tests.serving import LiveServer
from tests.worker.evaluations.conftest import Ask, Evaluate, evaluator, lines, read
from tests.worker.worker_harness import WorkerHarness
from worker.jobs.evaluation_record import CARD
from worker.jobs.lease import LeaseUncertain
from worker.node.resources import Resources
from worker.reconciler import cleanup

HEADING = "## Evaluation"


def write_with_card(directory: Path, step: int, base_sha256: str) -> Path:
    write_adapter(directory, step, base_sha256)
    entries = artifact_directory.read_manifest(directory)
    (directory / CARD).write_text(f"# Step {step}\n")
    (directory / artifact_directory.MANIFEST).unlink()
    artifact_directory.write_manifest(directory, {key: entries[key] for key in ("base_model", "lora", "step")})
    return directory


@pytest.fixture
def trained(harness: WorkerHarness, tmp_path: Path) -> Job:
    def write(directory: Path, step: int) -> Path:
        return write_with_card(directory, step, base_sha256)

    with transaction(harness.sessions) as session:
        base_sha256 = session.scalar(text("SELECT manifest_sha256 FROM base_models"))
        return make_trained_job(session, harness.resources.storage, harness.project, tmp_path / "made", write)


def checkpoint_of(harness: WorkerHarness, job: Job, step: int = 4) -> Checkpoint:
    with transaction(harness.sessions) as session:
        return session.scalars(select(Checkpoint).filter_by(job_id=job.id, step_number=step)).one()


def contents(harness: WorkerHarness, file_ids: list[str]) -> dict[str, bytes]:
    return {harness.file(file_id).filename: harness.content(file_id) for file_id in file_ids}


def visible(harness: WorkerHarness, job: Job) -> set[str]:
    with transaction(harness.sessions) as session:
        return set(session.scalars(select(File.id).where(File.job_id == job.id, File.is_available())))


def judged(harness: WorkerHarness, job: Job, step: int = 4) -> Any:
    """The entry of the manifest that users get, whose card has it once and whose files verify with it."""
    checkpoint = checkpoint_of(harness, job, step)
    found = contents(harness, checkpoint.public_file_ids)
    manifest = json.loads(found[artifact_directory.MANIFEST])
    assert manifest == checkpoint.manifest
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in found.items() if name in manifest["files"]
    }
    entry, card = manifest.get("evaluation"), found[CARD].decode()
    assert card.startswith(f"# Step {step}\n")
    assert (card.count(HEADING), entry is None or f"`{entry['id']}`" in card) == (int(entry is not None), True)
    return entry


class TestEvaluatedDownload:
    @pytest.fixture(params=["directory", "bucket"])
    def resources(self, resources: Resources, settings: Settings, request: pytest.FixtureRequest) -> Resources:
        if request.param == "directory":
            return resources
        server: S3Server = request.getfixturevalue("rclone")
        location = with_prefix(server.location, secrets.token_hex(4))
        return replace(resources, storage=S3Storage(location, settings.storage_dir / "staging"))

    @pytest.fixture
    def storage(self, resources: Resources) -> Storage:
        return resources.storage

    def test_files_archive_and_digests_are_those_of_the_evaluated_adapter(
        self, harness: WorkerHarness, evaluate: Evaluate, trained: Job, live_server: LiveServer, api_key: str,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        """As `tunery.download` gets them, in the archive, and in the job object."""
        evaluation = evaluate()
        with openai.OpenAI(base_url=live_server.url, api_key=api_key) as client:
            directory = tunery.download(trained.id, tmp_path / "got", client=client)
        manifest = artifact_directory.verify(directory, sealed=True)
        with transaction(harness.sessions) as session:
            assert manifest["evaluation"] == evaluations.newest_headline(session, evaluation.model)
        assert manifest["evaluation"]["id"] == evaluation.id
        card = (directory / CARD).read_text()
        assert (card.count(HEADING), manifest["evaluation"]["text"] in card) == (1, True)
        path = f"{live_server.url}/fine_tuning/jobs/{trained.id}"
        headers = {"Authorization": f"Bearer {api_key}"}
        shown = httpx2.get(path, headers=headers).json()["adapter"]
        listed = httpx2.get(f"{path}/adapter", headers=headers).json()
        (checkpoint, _) = httpx2.get(f"{path}/checkpoints", headers=headers).json()["data"]
        archive = httpx2.get(f"{path}/adapter/archive", headers=headers).content
        assert (hashlib.sha256(archive).hexdigest(), len(archive)) == (shown["sha256"], shown["bytes"])
        assert artifact_directory.describe_archive(directory) == (shown["bytes"], shown["sha256"])
        assert listed["archive"]["sha256"] == shown["sha256"]
        assert (
            [file["id"] for file in listed["files"]], listed["archive"]["id"]
        ) == (shown["files"], shown["archive_file_id"]) == (
            checkpoint["result_files"], checkpoint["adapter_archive_file_id"]
        )  # fmt: skip
        trained_manifest = contents(harness, checkpoint_of(harness, trained).file_ids)[artifact_directory.MANIFEST]
        assert "evaluation" not in json.loads(trained_manifest)
        findings = integrity.check(harness.resources.engine, harness.resources.storage, True, False, None)
        assert list(findings) == []


class TestNewestEvaluation:
    def test_a_newer_one_replaces_the_section_and_what_it_replaces_stays_for_a_day(
        self, harness: WorkerHarness, evaluate: Evaluate, trained: Job
    ) -> None:
        as_trained = checkpoint_of(harness, trained)
        read_by_programs = contents(harness, as_trained.file_ids)
        evaluate()
        first = checkpoint_of(harness, trained)
        newest = evaluate(lines(5))
        second = checkpoint_of(harness, trained)
        assert judged(harness, trained)["id"] == newest.id
        assert as_trained.file_ids == first.file_ids == second.file_ids
        replaced = {as_trained.archive_file_id, *first.all_file_ids} - {*second.all_file_ids}
        assert len(replaced) == 4  # two archives, a card, a manifest
        assert replaced | {*second.all_file_ids} <= visible(harness, trained)
        with transaction(harness.sessions) as session:
            session.execute(update(File).values(expires_at=File.expires_at - timedelta(days=1)))
        cleanup.clean_up(harness.resources)
        assert replaced & visible(harness, trained) == set()
        assert {*second.all_file_ids} <= visible(harness, trained)
        assert judged(harness, trained)["id"] == newest.id
        assert len(harness.content(second.archive_file_id)) == harness.job(trained).adapter_bytes
        assert contents(harness, second.file_ids) == read_by_programs
        changed = {name for name, content in contents(harness, second.public_file_ids).items()
                   if content != read_by_programs[name]}  # fmt: skip
        assert changed == {artifact_directory.MANIFEST, CARD}
        cards = list((harness.resources.settings.storage_dir / "objects").rglob(CARD))
        assert len([path for path in cards if HEADING in path.read_text()]) == 1

    def test_the_newer_of_two_that_end_at_once_counts(
        self, harness: WorkerHarness, ask: Ask, trained: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both, succeed = threading.Barrier(2, timeout=60), evaluations.succeed
        monkeypatch.setattr(evaluations, "succeed", lambda *args, **values: (both.wait(), succeed(*args, **values))[1])
        _, newer = ask(), ask()
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            harness.threads.append(threading.Thread(target=evaluator(harness, tmp_path / name).run_next))
            harness.threads[-1].start()
        for thread in harness.threads:
            thread.join()
        assert judged(harness, trained)["id"] == newer.id
        assert harness.job(trained).adapter_archive_file_id == checkpoint_of(harness, trained).archive_file_id

    def test_an_older_one_that_ends_later_changes_nothing(
        self, harness: WorkerHarness, ask: Ask, trained: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It ends while the newer one is between its claim and its end."""
        older, newer, succeed = ask(), ask(), evaluations.succeed
        (tmp_path / "other").mkdir()

        def end_the_newer_one_first(*arguments: Any, **values: Any) -> Evaluation:
            monkeypatch.setattr(evaluations, "succeed", succeed)
            assert evaluator(harness, tmp_path / "other").run_next()
            return succeed(*arguments, **values)

        monkeypatch.setattr(evaluations, "succeed", end_the_newer_one_first)
        assert evaluator(harness, tmp_path).run_next()
        assert {read(harness, each).state for each in (older, newer)} == {"succeeded"}
        assert judged(harness, trained)["id"] == newer.id
        with transaction(harness.sessions) as session:
            deleted = session.scalars(select(File.filename).where(File.deleted_at.is_not(None)))
            assert sorted(deleted) == [artifact_directory.MANIFEST, CARD]

    def test_one_without_a_headline_changes_nothing(
        self, harness: WorkerHarness, evaluate: Evaluate, trained: Job
    ) -> None:
        before = checkpoint_of(harness, trained)
        assert evaluate(graders=[]).state == "succeeded"
        after = checkpoint_of(harness, trained)
        assert (after.evaluated_file_ids, after.archive_file_id) == (None, before.archive_file_id)
        assert judged(harness, trained) is None

    def test_a_checkpoint_that_is_not_the_result_leaves_the_adapter_of_the_job(
        self, harness: WorkerHarness, evaluate: Evaluate, trained: Job
    ) -> None:
        evaluation = evaluate(checkpoint=checkpoint_of(harness, trained, 2).id)
        assert judged(harness, trained, 2)["id"] == evaluation.id
        assert judged(harness, trained) is None
        done = harness.job(trained)
        assert (done.adapter_sha256, done.adapter_archive_file_id) == (
            trained.adapter_sha256,
            trained.adapter_archive_file_id,
        )


class TestDeletedAdapter:
    @pytest.mark.parametrize(
        "which",
        [
            pytest.param("a file", marks=pytest.mark.extended("the same check as of the archive")),
            "the archive",
            "the checkpoint",
        ],
    )
    def test_an_adapter_that_is_deleted_meanwhile_does_not_come_back(
        self, harness: WorkerHarness, ask: Ask, trained: Job, which: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        evaluation, succeed = ask(checkpoint=checkpoint_of(harness, trained, 2).id), evaluations.succeed
        found = checkpoint_of(harness, trained, 2)

        def delete_first(*arguments: Any, **values: Any) -> Evaluation:
            with transaction(harness.sessions) as session:
                if which == "the checkpoint":
                    session.get_one(Checkpoint, found.id).retired_at = func.clock_timestamp()
                else:
                    files.delete_all(session, [found.file_ids[-1] if which == "a file" else found.archive_file_id])
            return succeed(*arguments, **values)

        monkeypatch.setattr(evaluations, "succeed", delete_first)
        before = visible(harness, trained)
        assert evaluator(harness, tmp_path).run_next()
        row = read(harness, evaluation)
        assert row.state == "succeeded"
        assert visible(harness, trained) - before == {row.results_file_id, row.report_file_id}
        after = checkpoint_of(harness, trained, 2)
        assert (after.evaluated_file_ids, after.archive_file_id) == (None, found.archive_file_id)

    def test_a_retired_checkpoint_takes_all_its_files_with_it(
        self, harness: WorkerHarness, evaluate: Evaluate, trained: Job
    ) -> None:
        evaluate(checkpoint=checkpoint_of(harness, trained, 2).id)
        found, project = checkpoint_of(harness, trained, 2), harness.project.id
        with transaction(harness.sessions) as session:
            rule = RetentionRule(project_id=project, kind=RetentionKind.CHECKPOINTS, days=1)
            session.add(rule)
            session.execute(update(Job).values(finished_at=Job.finished_at - timedelta(days=2)))
            assert list(retention.delete_due(session, rule).ids) == [found.id]
        assert {*found.all_file_ids} & visible(harness, trained) == set()
        assert len({*found.all_file_ids}) == 7

    def test_the_card_stays_readable_in_the_archive_until_that_is_deleted(
        self, harness: WorkerHarness, evaluate: Evaluate, trained: Job
    ) -> None:
        evaluate()
        found = checkpoint_of(harness, trained)
        whole = harness.content(found.archive_file_id)
        with transaction(harness.sessions) as session:
            files.delete_all(session, found.public_file_ids)
        cleanup.purge_files(harness.resources)
        assert harness.content(found.archive_file_id) == whole
        with transaction(harness.sessions) as session:
            files.delete_all(session, [found.archive_file_id])
            assert {file.id for file in files.lock_purgeable(session)} == {*found.public_file_ids}


class TestUncommittedEnd:
    @pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "failed"])
    def test_an_end_that_is_not_committed_leaves_the_adapter_and_no_objects(
        self, harness: WorkerHarness, ask: Ask, trained: Job, is_killed: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """A killed worker leaves objects without a row, which the cleanup deletes."""
        before, evaluation = checkpoint_of(harness, trained), ask()
        kept = stored(harness)
        with monkeypatch.context() as patches:
            patches.setattr(evaluations, "publish_adapter", raises(LeaseUncertain("x") if is_killed else OSError()))
            evaluator(harness, tmp_path).run_next()
        assert bool(stored(harness) - kept) is is_killed
        assert read(harness, evaluation).state != "succeeded"
        assert (checkpoint_of(harness, trained).archive_file_id, judged(harness, trained)) == (
            before.archive_file_id,
            None,
        )
        assert cleanup.delete_orphans(harness.resources, older_than_seconds=-60) == (4 if is_killed else 0)
        assert stored(harness) == kept


def stored(harness: WorkerHarness) -> set[str]:
    return set(harness.resources.storage.older_than("jobs", 2e9))


def raises(error: Exception) -> Callable[..., Iterator[None]]:
    def fail(*_: Any) -> Iterator[None]:
        raise error

    return fail
