"""The state `validating_files`: read every line of the files as the trainer will, with the base model's tokenizer.

Files are streamed, so the memory depends on the longest line, not on the file. Errors in a file fail the job and name
the lines; examples that will be truncated or contribute nothing are reported as warnings. The job's requirements are
estimated once its files have been read, as columns of its row, for claims and the forecast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.db import files
from app.db.jobs import claims
from app.db.jobs.leases import FencedError
from app.db.scheduling import workers
from app.db.tables import File, Job, JobTokens
from app.domain.datasets.chat_template import UnusableTemplate
from app.domain.datasets.report import (
    DatasetReport,
    no_trainable_tokens_message,
    too_few_examples_message,
)
from app.domain.datasets.stored_tokens import read_and_store
from app.domain.datasets.warnings import RowIndex
from app.domain.evaluations.graders import EvaluationRequest
from app.domain.jobs.layer_patterns import match_spec
from app.domain.jobs.spec import JobSpec
from app.domain.jobs.states import JobState, Reason
from app.domain.planning.estimate import estimate_requirements
from app.domain.planning.packing import Workload
from app.log import get_logger
from app.system.limited_rendering import UnreadableTokenizer, stream_in_process
from worker.evaluations.prepare import InvalidEvaluationFile, read_checked_inputs
from worker.jobs import stored_files
from worker.jobs.base_and_adapter import unusable_base
from worker.jobs.exit_classification import AttemptOutcome
from worker.jobs.job_tokens import TokensWriter
from worker.jobs.lease import JobAttempt, Runner
from worker.jobs.prepare import Inputs, PreparationError, failure_outcome, load_inputs, lost_file_error
from worker.jobs.sanitize import clean_text

REASONS = {"training": Reason.INVALID_TRAINING_FILE, "validation": Reason.INVALID_VALIDATION_FILE}

log = get_logger(__name__)


class Validator(Runner[Job, JobAttempt]):
    """Validates the files of jobs in the state `validating_files`, one job at a time."""

    kind = "validate"
    table = Job
    attempt = JobAttempt

    def claim(self, session: Session) -> Job | None:
        return claims.claim(session, "validate", self.owner, self.settings.lease_ttl_seconds)

    def run(self, attempt: JobAttempt) -> None:
        """Read the files; the job is `queued`, or the attempt ends with the reason why it is not."""
        tokens = TokensWriter(attempt)
        try:
            inputs, reports = self._read(attempt, tokens)
            self._accept(attempt, reports, requirement_columns(attempt, inputs, reports), tokens)
            attempt.outcome = Reason.DONE
            log.info("files validated")
        except FencedError:
            raise
        except Exception as error:
            attempt.end(failure_outcome(attempt, error))

    def _read(self, attempt: JobAttempt, tokens: TokensWriter) -> tuple[Inputs, dict[str, DatasetReport]]:
        """Read both files. Raises PreparationError for the first one that cannot be used, AttemptFailed, FencedError,
        OSError."""
        inputs = attempt.transact(lambda session: load_inputs(session, attempt.row))
        try:
            return inputs, self._read_files(attempt, inputs, tokens)
        except UnreadableTokenizer as error:
            raise unusable_base(inputs.base.name, "its tokenizer cannot be read on this worker") from error
        except UnusableTemplate as error:
            raise unusable_base(inputs.base.name, str(error).replace("the model's", "its")) from error

    def _read_files(self, attempt: JobAttempt, inputs: Inputs, tokens: TokensWriter) -> dict[str, DatasetReport]:
        spec = JobSpec.model_validate(attempt.row.spec)
        reports: dict[str, DatasetReport] = {}
        training_rows: RowIndex | None = None
        minima = {"training": self.settings.min_training_examples, "validation": 1}
        for role, file in (("training", inputs.training_file), ("validation", inputs.validation_file)):
            if file is None:
                continue
            tokens.begin(role)
            for item in self._examine(spec, attempt, inputs, file, training_rows, tokens.now):
                if isinstance(item, bytes):
                    tokens.write(role, item)
                else:
                    report, training_rows = item
            if outcome := find_rejection(role, minima[role], report, spec):
                raise PreparationError(outcome)
            reports[role] = report
        if spec.evaluation is not None:
            self._check_evaluation_file(spec, spec.evaluation, attempt, inputs)
        return reports

    def _check_evaluation_file(
        self, spec: JobSpec, request: EvaluationRequest, attempt: JobAttempt, inputs: Inputs
    ) -> None:
        """Check the rows of the job's evaluation before anything is trained. Raises PreparationError, OSError."""
        file = attempt.transact(lambda session: files.get_even_deleted(session, request.file))
        assert file is not None, "it was checked when the job was created"
        try:
            read_checked_inputs(
                lambda: self.resources.storage.open(file.storage_key),
                request.settings(),
                spec.chat_template_kwargs,
                Path(inputs.base.directory),
                inputs.base.catalog_entry.context_length,
                self.settings.max_line_bytes,
                attempt.check_running,
            )
        except FileNotFoundError as error:
            raise lost_file_error(file) from error
        except InvalidEvaluationFile as error:
            text = f"The job failed due to an invalid evaluation file. {error}"
            outcome = AttemptOutcome(Reason.INVALID_EVALUATION_FILE, clean_text(text), "evaluation.file")
            raise PreparationError(outcome) from error

    def _examine(
        self,
        spec: JobSpec,
        attempt: JobAttempt,
        inputs: Inputs,
        file: File,
        training_rows: RowIndex | None,
        now: datetime,
    ) -> Iterator[bytes | tuple[DatasetReport, RowIndex]]:
        """Yield the tokens of a file in pieces, then its report and its rows. Raises PreparationError, FencedError,
        OSError."""
        longest = self.settings.max_line_bytes
        try:
            with self.resources.storage.open(file.storage_key) as opened:
                yield from stream_in_process(
                    Path(inputs.base.directory),
                    now,
                    read_and_store,
                    spec.data_parameters,
                    longest,
                    training_rows,
                    file.sha256,
                    files=[opened],
                    max_line_bytes=longest,
                    check=attempt.check_running,
                )
        except FileNotFoundError as error:
            raise lost_file_error(file) from error

    def _accept(
        self, attempt: JobAttempt, reports: dict[str, DatasetReport], needs: dict[str, Any], tokens: TokensWriter
    ) -> None:
        data = reports["training"].counts()
        if "validation" in reports:
            data["validation"] = reports["validation"].counts()
        warnings = list(warnings_of(attempt.row, reports))

        def accept(session: Session) -> None:
            """Write the warnings' events, the job's list of warnings and new state, and the row of its tokens."""
            for warning in warnings:
                details = {key: value for key, value in warning.items() if key != "message"}
                claims.append_event(session, attempt.lease, warning["message"], level="warn", data=details)
            all_warnings = [each for each in attempt.row.warnings if each["file"] is None] + warnings
            message = "Files validated, moving job to queued state"
            claims.finish_validation(session, attempt.lease, message, data, **needs, warnings=all_warnings)
            session.add(JobTokens(**columns))
            self.resources.hints.after_commit(session, "gpu")

        def is_accepted(session: Session) -> bool:
            row = session.get(Job, attempt.row.id)
            return row is not None and row.state != JobState.VALIDATING

        with stored_files.deleted_unless_committed(self.resources.storage) as keys:
            columns = tokens.store(keys)
            attempt.finish(accept, is_accepted)


def find_rejection(role: str, min_examples: int, report: DatasetReport, spec: JobSpec) -> AttemptOutcome | None:
    """The outcome that rejects the training or validation file, with OpenAI's messages where they exist; None if the
    file can be used."""
    reason, text = REASONS[role], ""
    if report.finding_count:
        text = f"The job failed due to an invalid {role} file. {report.findings_text}"
    elif report.examples < min_examples:
        reason = Reason.INVALID_N_EXAMPLES if role == "training" else reason
        text = too_few_examples_message(role, report.examples, min_examples)
    elif not report.labelled_tokens:
        why = no_trainable_tokens_message(spec.method, spec.hyperparameters.context_length)
        text = f"The job failed due to an invalid {role} file. {why}"
    if not text:
        return None
    findings = {"findings": [asdict(finding) for finding in report.findings], "total": report.finding_count}
    return AttemptOutcome(reason, text, f"{role}_file", findings if report.finding_count else {})


def warnings_of(job: Job, reports: Mapping[str, DatasetReport]) -> Iterator[dict[str, Any]]:
    """The warnings about the files, as they are stored in the job's `warnings`."""
    spec = JobSpec.model_validate(job.spec)
    for role, report in reports.items():
        file_id = job.training_file_id if role == "training" else job.validation_file_id
        chosen = spec.hyperparameters
        for warning in report.warnings(spec.method, chosen.context_length, chosen.label_weights):
            message = f"{role.capitalize()} file: {warning.message}"
            yield asdict(warning) | {"file": file_id, "message": message}


def requirement_columns(attempt: JobAttempt, inputs: Inputs, reports: Mapping[str, DatasetReport]) -> dict[str, Any]:
    """The columns with the estimated requirements; empty if they cannot be estimated.

    Any worker may claim a job without an estimate, and its trainer plans the job again. Raises FencedError.
    """
    spec = JobSpec.model_validate(attempt.row.spec)
    entry = inputs.base.catalog_entry
    if not entry.decoder_layers:  # registered before entries had the fields of a plan
        return {}
    need, sha256 = attempt.row.requirements, inputs.base.manifest_sha256
    devices = attempt.transact(lambda session: workers.candidate_devices(session, spec, sha256, need))
    try:
        spec = match_spec(spec, entry.layers)  # a job that was stored before patterns were matched at creation
        training, validation = reports["training"], reports.get("validation")
        validation_tokens = validation.tokens if validation else 0
        work = Workload.of(spec, training.lengths, training.labelled_tokens, validation_tokens)
        estimate = estimate_requirements(entry, spec, work, devices)
    except Exception:  # a failed estimate must not fail the job
        log.exception("the job's requirements could not be estimated")
        return {}
    return {
        "needed_cpu_bytes": estimate.cpu_bytes,
        "needed_cuda_bytes": estimate.cuda_bytes,
        "planned_seconds": estimate.seconds,
    }
