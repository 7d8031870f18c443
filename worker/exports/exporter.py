"""Exports: base and adapter become one ordinary model, in a child process, and its files ordinary files of the project.

A slot of its own, in every worker that has torch: a merge of a large model takes minutes, in which new jobs must not
wait for their validation.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from app.db import models
from app.db.engine import transaction
from app.db.files import files
from app.db.jobs import exports
from app.db.jobs.claims import FencedError, Lease
from app.db.tables import Export, File
from app.domain.artifacts.exports import ExportError, ExportState
from app.domain.artifacts.full_disk import is_disk_full
from app.domain.jobs.states import ExitCode
from app.log import get_logger
from app.system.artifact_directory import MANIFEST, ManifestMismatch, read_manifest
from worker.exports.merge_process import MERGER, Merge, start_merge
from worker.jobs import artifacts, parent_adapter, workdir
from worker.jobs.artifacts import StoredFile
from worker.jobs.lease import DATABASE_AWAY, LeaseKeeper, boottime_seconds
from worker.jobs.publish import PURPOSE
from worker.jobs.sanitize import clean, clean_text
from worker.jobs.watchdog import Guard
from worker.node.device import oom_kills
from worker.node.locks import try_lock
from worker.node.resources import Resources

MERGED = "merged"

log = get_logger(__name__)


def can_merge() -> bool:
    """Whether this worker's environment has what the merge program needs; a worker that only validates has no torch."""
    return find_spec("torch") is not None


class NotMade(Exception):
    """The attempt ends; `is_final`: another one would end the same way."""

    def __init__(self, code: ExportError, message: str, is_final: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = clean_text(message)
        self.is_final = is_final


class Drained(Exception):
    """The worker stops; the export waits for another."""


class ExportKeeper(LeaseKeeper):
    """The lease of an export: renewed and looked after as a job's, in a table of its own."""

    def _look(self) -> None:
        sent_at = boottime_seconds()
        is_due = sent_at - self._confirmed_at >= self._settings.lease_renew_seconds
        with transaction(self._resources.sessions) as session:
            if is_due:
                exports.renew_lease(session, self.lease, self._settings.lease_ttl_seconds)
            exports.check_lease(session, self.lease)
        if is_due:
            self._confirmed_at = sent_at


class Exporter:
    """Takes what waits, one at a time."""

    def __init__(self, resources: Resources, owner: str, lock_path: Path, merger: Sequence[str] = MERGER) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.owner = owner
        self._lock_path = lock_path
        self._merger = merger
        self._unsure = False  # the last claim's COMMIT was not answered: an export may be ours without our knowing

    def take_one(self) -> bool:
        """One export from its claim to its end; False when none waits, or an earlier merge won't go."""
        with try_lock(self._lock_path) as lock:
            taken = self._take() if lock is not None else None
            if lock is None or taken is None:
                return False
            export, keeper = taken
            with structlog.contextvars.bound_contextvars(export=export.id, attempt=export.attempt), keeper:
                self._see_through(export, keeper, lock)
        return True

    def _take(self) -> tuple[Export, LeaseKeeper] | None:
        claimed_at, ttl_seconds = boottime_seconds(), self.settings.lease_ttl_seconds
        try:
            with transaction(self.resources.sessions) as session:
                export = exports.find_held_export(session, self.owner) if self._unsure else None
                export = export or exports.claim(session, self.owner, ttl_seconds)
                if export is not None and self._unsure:
                    exports.renew_lease(session, Lease(export.id, export.attempt, self.owner), ttl_seconds)
        except DATABASE_AWAY:
            self._unsure = True
            raise
        self._unsure = False
        if export is None:
            return None
        return export, ExportKeeper(self.resources, Lease(export.id, export.attempt, self.owner), claimed_at)

    def _see_through(self, export: Export, keeper: LeaseKeeper, lock: int) -> None:
        log.info("export started", model=export.model)
        directory = workdir.attempt_directory(self.settings.work_dir, export.id, export.attempt)
        try:
            self._make(export, keeper, directory, lock)
            log.info("export succeeded")
        except FencedError:
            log.info("fenced: the export is dropped")
        except Drained:
            self._end(keeper, lambda session: exports.requeue(session, keeper.lease))
        except NotMade as refusal:
            self._give_up(keeper, refusal)
        except Exception:
            log.exception("the exporter failed")
            self._give_up(keeper, NotMade(ExportError.SERVER_ERROR, "The worker met an internal error"))
        finally:
            workdir.clear(directory)

    def _make(self, export: Export, keeper: LeaseKeeper, directory: Path, lock: int) -> None:
        """Raises NotMade, Drained, FencedError."""
        try:
            workdir.make_fresh(directory)
            base, adapter = self._fetch(export, keeper, directory)
            keeper.check()
            self._merge(base, adapter, directory / MERGED, keeper, lock)
            self._publish(export, keeper, directory / MERGED)
        except ManifestMismatch as error:
            raise NotMade(ExportError.SERVER_ERROR, f"What the merge left is not whole: {error}") from error
        except OSError as error:
            log.exception("files or storage failed")
            raise _of_storage(error) from error

    def _fetch(self, export: Export, keeper: LeaseKeeper, directory: Path) -> tuple[Path, Path]:
        """The base model's directory, and the adapter's files in one of ours."""
        loaded = keeper.transact(lambda session: _load(session, export))
        assert loaded is not None
        base, rows = loaded
        if base is None or not (base / "config.json").is_file():
            why = "is not registered any more" if base is None else "cannot be read on this worker"
            text = f"The base model {export.base_model!r} {why}; its operator can bring it back"
            raise NotMade(ExportError.MODEL_UNAVAILABLE, text, is_final=base is None)
        try:
            return base, parent_adapter.fetch(self.resources, rows, directory).directory
        except ManifestMismatch as error:
            text = f"The adapter of {export.model} is not whole any more: {error}"
            raise NotMade(ExportError.ADAPTER_DELETED, text, is_final=True) from error

    def _merge(self, base: Path, adapter: Path, merged: Path, keeper: LeaseKeeper, lock: int) -> None:
        kills_before = oom_kills()
        merge = start_merge(self._merger, base, adapter, merged, lock, self.settings.threads)
        try:
            with Guard(merge, keeper, self.resources.stop, self.settings) as guard:
                exit_code = merge.wait()
        finally:
            merge.close()
        keeper.check()
        if exit_code == ExitCode.DONE:
            return
        log.warning("merge ended", exit_code=exit_code, last_words=merge.last_words())
        if guard.drain_asked_at is not None:
            raise Drained
        if guard.stalled:
            raise NotMade(ExportError.SERVER_ERROR, "The merge did nothing for too long and was stopped")
        raise _of_exit(exit_code, merge, oom_kills() > kills_before)

    def _publish(self, export: Export, keeper: LeaseKeeper, merged: Path) -> None:
        """Bytes first, under the attempt's own prefix; they become visible with the rows that point at them."""
        manifest = read_manifest(merged)
        prefix = f"exports/{export.id}/attempts/{export.attempt}"
        with artifacts.taking_back() as undo:
            stored = artifacts.put_directory(self.resources.storage, merged, prefix)
            undo.callback(artifacts.discard, self.resources.storage, [file.key for file in stored])
            _check_digests(stored, manifest)
            keeper.conclude(
                lambda session: self._succeed(session, export, keeper.lease, manifest, stored),
                lambda session: _has_succeeded(session, export),
            )

    def _succeed(
        self, session: Session, export: Export, lease: Lease, manifest: dict[str, Any], stored: Sequence[StoredFile]
    ) -> None:
        rows = [
            files.insert(
                session, export.project_id, PURPOSE, file.filename, file.size_bytes, file.sha256, file.key,
                job_id=export.job_id,
            )
            for file in stored
        ]  # fmt: skip
        size_bytes = sum(file.size_bytes for file in stored)
        exports.succeed(session, lease, clean(manifest), [row.id for row in rows], size_bytes)

    def _give_up(self, keeper: LeaseKeeper, refusal: NotMade) -> None:
        settings, code, text = self.settings, refusal.code, refusal.message
        log.warning("export not made", code=code.value, why=text)
        if code == ExportError.STORAGE_FULL:
            limit = settings.storage_full_wait_seconds
            self._end(keeper, lambda session: exports.wait_for_storage(session, keeper.lease, text, limit))
        elif refusal.is_final:
            self._end(keeper, lambda session: exports.fail(session, keeper.lease, code, text))
        else:
            delay_seconds, most = settings.requeue_delay_seconds, settings.max_crash_streak
            self._end(
                keeper, lambda session: exports.finish_crashed(session, keeper.lease, code, text, delay_seconds, most)
            )

    def _end(self, keeper: LeaseKeeper, work: Any) -> None:
        """After a lost COMMIT the repetition finds itself fenced, which says that the first one worked."""
        try:
            keeper.conclude(work)
        except FencedError:
            log.info("fenced: the end of the export is somebody else's")


def _load(session: Session, export: Export) -> tuple[Path | None, list[File]]:
    base = models.get_base(session, export.project_id, export.base_model)
    rows = [files.get_even_deleted(session, file_id) for file_id in export.adapter_file_ids]
    return Path(base.directory).absolute() if base else None, [row for row in rows if row is not None]


def _check_digests(stored: Sequence[StoredFile], manifest: dict[str, Any]) -> None:
    """What lies in storage is what the manifest names. Raises ManifestMismatch."""
    found = {file.filename: file.sha256 for file in stored if file.filename != MANIFEST}
    named = {name: each.get("sha256") for name, each in manifest["files"].items()}
    if found != named:
        raise ManifestMismatch(f"the files are not those that {MANIFEST} names")


def _has_succeeded(session: Session, export: Export) -> bool:
    now = session.get(Export, export.id)
    return now is not None and now.state == ExportState.SUCCEEDED and now.attempt == export.attempt


def _of_exit(exit_code: int, merge: Merge, is_oom: bool) -> NotMade:
    if exit_code == ExitCode.BAD_SPEC:
        return NotMade(ExportError.CANNOT_MERGE, merge.last_words(), is_final=True)
    if exit_code == ExitCode.DISK_FULL:
        return NotMade(ExportError.STORAGE_FULL, merge.last_words())
    if exit_code == ExitCode.STORAGE:
        return NotMade(ExportError.STORAGE_UNAVAILABLE, merge.last_words())
    if exit_code == -signal.SIGKILL and is_oom:
        text = "The kernel killed the merge because the machine ran out of memory"
        return NotMade(ExportError.OUT_OF_MEMORY, text)
    how = f"was ended by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
    return NotMade(ExportError.SERVER_ERROR, f"The merge {how}")


def _of_storage(error: OSError) -> NotMade:
    if is_disk_full(error):
        return NotMade(ExportError.STORAGE_FULL, "The disk is full: there is no space for the merged model.")
    return NotMade(ExportError.STORAGE_UNAVAILABLE, "Files could not be read or written")
