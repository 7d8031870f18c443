"""Exports: from the request to a model that transformers loads; failures, retries, cleanup."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import func
from transformers import AutoModelForCausalLM

from app.db import files
from app.db.engine import transaction
from app.db.scheduling import workers
from app.db.tables import BaseModelRow, Export, Job
from app.domain.artifacts.exports import ExportType
from app.services.jobs import exports as service
from app.system import host
from tests.commands.trained import make_trained_job
from tests.deadline import until
from tests.fork_server import forked
from tests.processes import is_alive
from tests.trainer import plain_peft
from tests.trainer.test_merge import TOKENS, logits_of, peft_model
from tests.worker.worker_harness import WorkerHarness
from worker.exports import COMMANDS, Exporter
from worker.node.worker_node import WorkerNode
from worker.reconciler import cleanup
from worker.reconciler.reconciler import Reconciler
from worker.trainer import merge

OWNER = "export.cpu0@test#1"
MERGE_MODULE = COMMANDS[ExportType.MERGED][-1]


# A merge in a tenth of a second: the destination has the adapter's weights.
MERGE = """
import hashlib, json, shutil
base, adapter, out = map(Path, sys.argv[1:])
out.mkdir()
shutil.copyfile(adapter / 'adapter_model.safetensors', out / 'model.safetensors')
sha256 = hashlib.sha256((out / 'model.safetensors').read_bytes()).hexdigest()
step = json.loads((adapter / 'MANIFEST.json').read_text())['step']
about = {'adapter': {'step': step}, 'files': {'model.safetensors': {'bytes': 1, 'sha256': sha256}}}
(out / 'MANIFEST.json').write_text(json.dumps(about))
"""


def write_real_adapter(base: Path) -> Callable[[Path, int], Path]:
    """A trainer's result for `base`, with weights that depend on the step."""
    from peft import LoraConfig, get_peft_model

    from app.system import artifact_directory, model_files

    def write(directory: Path, step: int) -> Path:
        torch.manual_seed(step)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        with plain_peft.quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            get_peft_model(model, config).save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)
        about = {
            "base_model": {"name": "tiny", "manifest_sha256": model_files.hash_directory(base)[1]},
            "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
            "step": step,
        }
        artifact_directory.write_manifest(directory, about)
        return directory

    return write


@pytest.fixture
def base(harness: WorkerHarness, tmp_path: Path) -> Path:
    """The directory that the harness has registered as `tiny`."""
    return tmp_path / "base"


@pytest.fixture
def really_trained(harness: WorkerHarness, base: Path, tmp_path: Path) -> Job:
    with transaction(harness.sessions) as session:
        return make_trained_job(
            session, harness.resources.storage, harness.project, tmp_path / "made", write_real_adapter(base)
        )


def ask(harness: WorkerHarness, job: Job, **body: Any) -> Export:
    with transaction(harness.sessions) as session:
        export = {"type": "merged"} | body
        return service.create(session, harness.resources.hints, job, export)


def read(harness: WorkerHarness, export: Export) -> Export:
    with transaction(harness.sessions) as session:
        return session.get_one(Export, export.id)


def exporter(harness: WorkerHarness, tmp_path: Path, *command: str, owner: str = OWNER) -> Exporter:
    commands = dict.fromkeys(ExportType, command or fake(tmp_path, MERGE))
    return Exporter(harness.resources, owner, tmp_path / "merge.lock", commands=commands)


def fake(tmp_path: Path, code: str) -> tuple[str, ...]:
    """A merge program that runs `code`; its arguments are base, adapter and destination."""
    program = tmp_path / "fake_merge.py"
    program.write_text("import os, signal, sys, time\nfrom pathlib import Path\n" + code)
    return sys.executable, str(program)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def end_the_pause(harness: WorkerHarness, export: Export) -> None:
    with transaction(harness.sessions) as session:
        session.get_one(Export, export.id).run_after = func.clock_timestamp()


def download(harness: WorkerHarness, export: Export, directory: Path) -> Path:
    directory.mkdir()
    for file_id in export.file_ids:
        file = harness.file(file_id)
        (directory / file.filename).write_bytes(harness.content(file_id))
    return directory


class TestExport:
    def test_the_merged_model_has_the_logits_of_base_plus_adapter(
        self, harness: WorkerHarness, really_trained: Job, base: Path, tmp_path: Path
    ) -> None:
        trained = really_trained
        export = ask(harness, trained)
        assert (export.state, export.step_number, export.model) == ("queued", 4, trained.fine_tuned_model)
        assert exporter(harness, tmp_path, *forked(MERGE_MODULE)).run_next()
        finished = read(harness, export)
        assert (finished.state, finished.error_message, finished.attempt, finished.lease_owner) == (
            "succeeded",
            None,
            1,
            None,
        )
        rows = [harness.file(file_id) for file_id in finished.file_ids]
        assert {"config.json", "model.safetensors", "tokenizer.json", "MANIFEST.json"} <= {row.filename for row in rows}
        for row in rows:
            assert (row.purpose, row.job_id, row.project_id) == ("fine-tune-results", trained.id, harness.project.id)
            assert hashlib.sha256(harness.content(row.id)).hexdigest() == row.sha256
        assert finished.size_bytes == sum(row.bytes for row in rows)
        merged = download(harness, finished, tmp_path / "downloaded")
        merged_logits = logits_of(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
        peft_logits = logits_of(peft_model(base, tmp_path / "made" / "step-4"))
        plain = logits_of(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
        size = peft_logits.abs().max()
        assert (plain - peft_logits).abs().max() / size > 0.05
        assert (merged_logits - peft_logits).abs().max() / size < 0.02
        assert AutoModelForCausalLM.from_pretrained(merged, dtype="auto").dtype == torch.bfloat16
        assert len(TOKENS) > 1
        assert list(harness.resources.settings.work_dir.rglob("*.safetensors")) == []

    def test_a_kept_checkpoint_is_exported_by_its_id_or_name(
        self, harness: WorkerHarness, trained: Job, tmp_path: Path
    ) -> None:
        early = next(each for each in harness.checkpoints(trained) if each.step_number == 2)
        export = ask(harness, trained, checkpoint=early.id)
        assert (export.step_number, ask(harness, trained, checkpoint=early.name).id) == (2, export.id)
        assert exporter(harness, tmp_path).run_next()
        finished = read(harness, export)
        assert finished.manifest is not None
        assert finished.manifest["adapter"]["step"] == 2

    def test_concurrent_requests_create_one_export(self, harness: WorkerHarness, trained: Job) -> None:
        ids: list[str] = []
        threads = [threading.Thread(target=lambda: ids.append(ask(harness, trained).id)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(ids), len(set(ids))) == (8, 1)


class TestDeleted:
    def test_a_deleted_export_loses_its_objects(self, harness: WorkerHarness, trained: Job, tmp_path: Path) -> None:
        export = ask(harness, trained)
        exporter(harness, tmp_path).run_next()
        finished = read(harness, export)
        self.delete(harness, finished)
        cleanup.purge_files(harness.resources)
        for file_id in finished.file_ids:
            with pytest.raises(FileNotFoundError):
                harness.resources.storage.stat(harness.file(file_id).storage_key)

    def test_deletion_during_the_merge_stops_it_and_leaves_no_file(
        self, harness: WorkerHarness, trained: Job, tmp_path: Path
    ) -> None:
        export = ask(harness, trained)
        command = fake(tmp_path, f"Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid()))\ntime.sleep(60)")
        thread = threading.Thread(target=exporter(harness, tmp_path, *command).run_next)
        thread.start()
        harness.threads.append(thread)
        pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the merge"))
        self.delete(harness, export)
        thread.join(20)
        assert (thread.is_alive(), is_alive(pid)) == (False, False)
        assert read(harness, export).state == "cancelled"
        assert list((harness.resources.settings.storage_dir / "objects").glob("exports/**/*.*")) == []

    def delete(self, harness: WorkerHarness, export: Export) -> None:
        with transaction(harness.sessions) as session:
            service.delete(session, session.get_one(Export, export.id))


class TestFailures:
    def test_the_bytes_of_a_deleted_adapter_stay_until_its_export_is_done(
        self, harness: WorkerHarness, trained: Job, tmp_path: Path
    ) -> None:
        export = ask(harness, trained)
        with transaction(harness.sessions) as session:
            files.delete_all(session, export.adapter_file_ids)
        cleanup.purge_files(harness.resources)
        assert exporter(harness, tmp_path).run_next()
        assert read(harness, export).state == "succeeded"
        cleanup.purge_files(harness.resources)
        with pytest.raises(FileNotFoundError):
            harness.resources.storage.stat(harness.file(export.adapter_file_ids[0]).storage_key)

    @pytest.mark.parametrize("missing", ["adapter", "base model"])
    def test_a_missing_file_or_base_model_fails_the_export(
        self, harness: WorkerHarness, trained: Job, tmp_path: Path, missing: str
    ) -> None:
        export = ask(harness, trained)
        if missing == "adapter":
            harness.resources.storage.delete(harness.file(export.adapter_file_ids[0]).storage_key)
        else:
            with transaction(harness.sessions) as session:
                session.delete(session.get_one(BaseModelRow, "tiny"))
        exporter(harness, tmp_path).run_next()
        failed = read(harness, export)
        code = "adapter_deleted" if missing == "adapter" else "model_unavailable"
        assert (failed.state, failed.error_code) == ("failed", code)
        assert missing != "adapter" or export.adapter_file_ids[0] in str(failed.error_message)

    def test_a_changed_base_model_fails_the_export_with_the_message_of_a_job(
        self, harness: WorkerHarness, really_trained: Job, base: Path, tmp_path: Path
    ) -> None:
        export = ask(harness, really_trained)
        (base / "generation_config.json").write_text("{}")
        exporter(harness, tmp_path, *forked(MERGE_MODULE)).run_next()
        failed = read(harness, export)
        assert (failed.state, failed.error_code) == ("failed", "model_unavailable")
        assert str(base) not in str(failed.error_message)
        assert ask(harness, really_trained).id != export.id  # a failed export does not block another request


class TestRetries:
    @pytest.mark.parametrize("where", ["merge", "storage"])
    def test_a_full_disk_delays_the_export_and_fails_it_only_after_the_longest_wait(
        self, harness: WorkerHarness, trained: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        export = ask(harness, trained)
        command = fake(tmp_path, "sys.exit(73)") if where == "merge" else fake(tmp_path, MERGE)
        if where == "storage":
            monkeypatch.setattr(harness.resources.storage, "put", no_space)
        for _ in range(4):  # more than the allowed number of crashes
            assert exporter(harness, tmp_path, *command).run_next()
            waiting = read(harness, export)
            assert (waiting.state, waiting.crash_streak) == ("queued", 0)
            assert waiting.storage_full_since is not None
            assert exporter(harness, tmp_path, *command).run_next() is False
            end_the_pause(harness, export)
        harness.resources.settings.storage_full_wait_seconds = 0
        exporter(harness, tmp_path, *command).run_next()
        failed = read(harness, export)
        assert (failed.state, failed.error_code) == ("failed", "storage_full")

    def test_the_delay_doubles_with_each_crash(self, harness: WorkerHarness, trained: Job, tmp_path: Path) -> None:
        harness.resources.settings.requeue_delay_seconds = 60
        export = ask(harness, trained)
        for delay_seconds in (60, 120):
            began = datetime.now(UTC)
            exporter(harness, tmp_path, *fake(tmp_path, "sys.exit(1)")).run_next()
            assert delay_seconds <= (read(harness, export).run_after - began).total_seconds() < delay_seconds + 30
            end_the_pause(harness, export)

    def test_a_merge_that_hangs_is_stopped(self, harness: WorkerHarness, trained: Job, tmp_path: Path) -> None:
        harness.resources.settings.stall_seconds = 0.5
        export = ask(harness, trained)
        exporter(harness, tmp_path, *fake(tmp_path, "time.sleep(60)")).run_next()
        assert (read(harness, export).state, read(harness, export).crash_streak) == ("queued", 1)

    def test_files_that_the_manifest_does_not_name_are_never_published(
        self, harness: WorkerHarness, trained: Job, tmp_path: Path
    ) -> None:
        code = (
            "out = Path(sys.argv[3])\nout.mkdir()\n(out / 'model.safetensors').write_bytes(b'x')\n"
            '(out / \'MANIFEST.json\').write_text(\'{"files": {"model.safetensors": {"sha256": "0"}}}\')\n'
        )
        export = ask(harness, trained)
        exporter(harness, tmp_path, *fake(tmp_path, code)).run_next()
        assert (read(harness, export).state, read(harness, export).file_ids) == ("queued", [])
        assert [
            p for p in (harness.resources.settings.storage_dir / "objects").glob("exports/**/*") if p.is_file()
        ] == []


class TestHints:
    def test_a_queued_export_causes_a_hint(
        self, harness: WorkerHarness, trained: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[str] = []
        monkeypatch.setattr(harness.resources.hints, "send", sent.append)
        with transaction(harness.sessions) as session:
            workers.heartbeat(session, "cpu0@test#1", "cpu", "test", 1, {})
        Reconciler(harness.resources).send_hints()
        ask(harness, trained)
        until(lambda: sorted(sent) == ["cpu", "gpu"], "the hints that leave after the commit")
        Reconciler(harness.resources).send_hints()
        assert sorted(sent) == ["cpu", "cpu", "gpu"]  # the queues that have a free worker


class TestWorkerNode:
    def test_a_worker_with_torch_has_an_export_slot(self, harness: WorkerHarness, trained: Job) -> None:
        export = ask(harness, trained)
        harness.resources.storage.delete(harness.file(export.adapter_file_ids[0]).storage_key)
        node = WorkerNode(harness.resources.settings)
        node.open("cpu0@test", ["cpu"])
        try:
            until(lambda: read(harness, export).state == "failed", "the export's end")
            with transaction(harness.sessions) as session:
                names = [worker.id.partition("#")[0] for worker in workers.alive(session)]
            assert names == ["cpu0@test"]
        finally:
            node.close()


def test_the_program_dies_with_its_parent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It gets its parent's pid in the environment, as a trainer does: an orphan would fill the disk."""
    monkeypatch.setenv("TUNERY_PARENT_PID", "1")
    monkeypatch.setattr(host, "die_with_parent", lambda parent_pid: parent_pid != 1)
    with pytest.raises(SystemExit) as ended:
        merge.main(["a", "b", "c"])
    assert ended.value.code == 70
    assert "process 1" in capsys.readouterr().err
