"""`validating_files`: every line of the files as the trainer will see it, with the base model's own tokenizer.

Streaming, so a file of any size needs the memory of its longest line. What is wrong with a file fails the job with line
numbers; what will be cut or contribute nothing is told, never done in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from app.db.jobs import claims
from app.db.jobs.claims import FencedError
from app.db.tables import File, Job
from app.domain.artifacts.full_disk import is_disk_full
from app.domain.datasets.jsonl import told
from app.domain.datasets.render import Renderer
from app.domain.datasets.report import Report, examine, nothing_to_learn, too_few_examples
from app.domain.datasets.warnings import SeenRows
from app.domain.jobs.spec import JobSpec
from app.domain.jobs.states import JobState, Reason
from app.log import get_logger
from app.system.tokenizer_files import load_renderer
from worker.jobs.exit_classification import STORAGE_PATIENCE, Outcome
from worker.jobs.lease import Claimer, LeaseKeeper
from worker.jobs.prepare import CannotStart, Inputs, base_unusable, load_inputs
from worker.node import space
from worker.node.resources import Resources
from worker.validation.requirements import reckon_needs

log = get_logger(__name__)


@dataclass(frozen=True)
class Kind:
    """One of the two files a job may have, in words."""

    noun: str
    reason: Reason
    least_examples: int

    @property
    def param(self) -> str:
        return f"{self.noun}_file"


class Rejected(CannotStart):
    """The file is not fit; `report` has the findings."""

    def __init__(self, outcome: Outcome, report: Report) -> None:
        super().__init__(outcome)
        self.report = report


class Validator:
    """Takes the jobs that wait for validation, one at a time."""

    def __init__(self, resources: Resources, owner: str) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.claimer = Claimer(resources, "validate", owner)

    def take_one(self) -> bool:
        """One job from its claim to `queued` or its end; False when none waits."""
        taken = self.claimer.take()
        if taken is None:
            return False
        job, keeper = taken
        with structlog.contextvars.bound_contextvars(job=job.id, attempt=job.attempt), keeper:
            self._see_through(job, keeper)
        return True

    def _see_through(self, job: Job, keeper: LeaseKeeper) -> None:
        try:
            inputs, reports = self._validate(job, keeper)
            self._accept(job, keeper, reports, reckon_needs(keeper, job, inputs, reports))
            log.info("files validated")
        except FencedError:
            log.info("fenced: the validation is dropped")
        except CannotStart as refusal:
            self._give_up(keeper, refusal.outcome, findings_of(refusal))
        except OSError as error:
            log.exception("storage failed")
            if is_disk_full(error):
                self._give_up(keeper, space.full(self.resources, self.settings.work_dir, None, error))
                return
            text = "The files could not be read; the validation is tried again"
            self._give_up(keeper, Outcome(Reason.STORAGE_UNAVAILABLE, text))
        except Exception:
            log.exception("the validator failed")
            text = "The worker met an internal error while it validated the files"
            self._give_up(keeper, Outcome(Reason.TRAINER_CRASHED, text))

    def _validate(self, job: Job, keeper: LeaseKeeper) -> tuple[Inputs, dict[str, Report]]:
        """Raises Rejected for the first file that is not fit, CannotStart, FencedError, OSError."""
        inputs = keeper.transact(lambda session: load_inputs(session, job))
        assert inputs is not None
        renderer, spec = open_renderer(inputs), JobSpec.model_validate(job.spec)
        reports: dict[str, Report] = {}
        training_rows: SeenRows | None = None
        for kind, file in self._files(inputs):
            rows = SeenRows()
            report = self._examine(spec, keeper, renderer, file, rows, training_rows)
            if outcome := verdict(kind, report, spec):
                raise Rejected(outcome, report)
            reports[kind.noun], training_rows = report, rows
        return inputs, reports

    def _files(self, inputs: Inputs) -> list[tuple[Kind, File]]:
        training = Kind("training", Reason.INVALID_TRAINING_FILE, self.settings.min_training_examples)
        validation = Kind("validation", Reason.INVALID_VALIDATION_FILE, 1)
        files = [(training, inputs.training_file)]
        return files + ([(validation, inputs.validation_file)] if inputs.validation_file else [])

    def _examine(
        self,
        spec: JobSpec,
        keeper: LeaseKeeper,
        renderer: Renderer,
        file: File,
        rows: SeenRows,
        training_rows: SeenRows | None,
    ) -> Report:
        try:
            opened = self.resources.storage.open(file.storage_key)
        except FileNotFoundError as error:
            raise CannotStart(Outcome(Reason.SERVER_ERROR, f"The bytes of {file.id} are gone from storage")) from error
        with opened:
            return examine(
                opened,
                renderer,
                spec.hyperparameters.context_length,
                self.settings.max_line_bytes,
                self._checkpoint(keeper),
                spec.method,
                spec.line_rules,
                rows,
                training_rows,
            )

    def _checkpoint(self, keeper: LeaseKeeper) -> Callable[[], None]:
        """To be called between lines: a cancel and a shutdown are heard within one example."""

        def check() -> None:
            keeper.check()
            if self.resources.stop.is_set():
                raise CannotStart(Outcome(Reason.DRAINED, "The worker stopped during the validation"))

        return check

    def _accept(self, job: Job, keeper: LeaseKeeper, reports: dict[str, Report], needs: dict[str, Any]) -> None:
        data = reports["training"].counts()
        if "validation" in reports:
            data["validation"] = reports["validation"].counts()
        warnings = list(warnings_of(job, reports))

        def accept(session: Session) -> None:
            """The events of the warnings, the job's list of them and its move, in one transaction."""
            for warning in warnings:
                claims.append_event(
                    session, keeper.lease, warning["message"], level="warn", data=without_message(warning)
                )
            told = {"warnings": [each for each in job.warnings if each["file"] is None] + warnings}
            message = "Files validated, moving job to queued state"
            claims.finish_validation(session, keeper.lease, message, data, **needs, **told)
            self.resources.hints.after_commit(session, "gpu")

        keeper.conclude(accept, lambda session: _is_accepted(session, job))

    def _give_up(self, keeper: LeaseKeeper, outcome: Outcome, data: dict[str, Any] | None = None) -> None:
        settings = self.settings
        patience = {Reason.DRAINED: 0, Reason.STORAGE_UNAVAILABLE: STORAGE_PATIENCE}.get(outcome.reason, 1)
        try:
            keeper.conclude(
                lambda session: claims.finish_held_attempt(
                    session, keeper.lease, outcome.reason, outcome.message, outcome.level, data, outcome.param,
                    patience * settings.requeue_delay_seconds, settings.max_crash_streak,
                    settings.storage_full_wait_seconds,
                )
            )  # fmt: skip
        except FencedError:
            log.info("fenced: the verdict is dropped")


def open_renderer(inputs: Inputs) -> Renderer:
    try:
        return load_renderer(Path(inputs.base.directory))
    except Exception as error:  # tokenizers raises a bare Exception
        raise base_unusable(inputs.base.name, "its tokenizer cannot be read on this worker") from error


def verdict(kind: Kind, report: Report, spec: JobSpec) -> Outcome | None:
    """Why the file is not fit, in OpenAI's words where they exist; None when it is."""
    begin = f"The job failed due to an invalid {kind.noun} file."
    if report.finding_count:
        text = told(report.findings)
        if report.finding_count > len(report.findings):
            text += f" These are the first {len(report.findings)} of {report.finding_count_text} problems."
        return Outcome(kind.reason, f"{begin} {text}", kind.param)
    if report.examples < kind.least_examples:
        reason = Reason.INVALID_N_EXAMPLES if kind.noun == "training" else kind.reason
        return Outcome(reason, too_few_examples(kind.noun, report.examples, kind.least_examples), kind.param)
    if not report.labelled_tokens:
        text = nothing_to_learn(spec.method, spec.hyperparameters.context_length)
        return Outcome(kind.reason, f"{begin} {text}", kind.param)
    return None


def warnings_of(job: Job, reports: Mapping[str, Report]) -> Iterator[dict[str, Any]]:
    """What the job's `warnings` have of its files."""
    spec = JobSpec.model_validate(job.spec)
    for noun, report in reports.items():
        file_id = job.training_file_id if noun == "training" else job.validation_file_id
        for warning in report.warnings(spec.method, spec.hyperparameters.context_length):
            message = f"{noun.capitalize()} file: {warning.message}"
            yield asdict(warning) | {"file": file_id, "message": message}


def without_message(warning: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in warning.items() if key != "message"}


def findings_of(refusal: CannotStart) -> dict[str, Any] | None:
    if not isinstance(refusal, Rejected):
        return None
    report = refusal.report
    return {"findings": [asdict(finding) for finding in report.findings], "total": report.finding_count}


def _is_accepted(session: Session, job: Job) -> bool:
    now = session.get(Job, job.id)
    return now is not None and now.state != JobState.VALIDATING
