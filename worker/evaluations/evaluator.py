"""Run evaluations: a child process generates the answers, another one grades them, and a summary is stored.

A GPU slot runs them between training jobs, as both need the whole device.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm import Session

from app.db.jobs import evaluations
from app.db.jobs.leases import FencedError, Retries
from app.db.tables import Evaluation, File
from app.domain.evaluations.graders import make_plan
from app.domain.evaluations.headline import record_of
from app.domain.evaluations.results import GradedEvaluation
from app.domain.evaluations.spec import (
    ANSWERS,
    OUTBOX,
    REPORT,
    RESULTS,
    ROLES,
    SUMMARY,
    Answer,
    EvaluationErrorCode,
    GenerationStarted,
    ModelAnswer,
)
from app.domain.jobs.states import ExitCode
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.system.artifact_directory import MANIFEST, describe_archive, read_manifest
from worker.evaluations import prepare
from worker.evaluations.endpoints import ask_endpoints
from worker.evaluations.prepare import EvaluationInputs, LoadedEvaluation
from worker.evaluations.report import summary_sentence
from worker.jobs import workdir
from worker.jobs.base_and_adapter import DIRECTORY, AttemptFailed
from worker.jobs.evaluation_record import CARD, record_evaluation
from worker.jobs.program_attempt import ProgramAttempt, ProgramLimits, ProgramRunner
from worker.jobs.sanitize import clean, clean_text
from worker.jobs.stored_files import ARCHIVE, StoredFile
from worker.node.resources import Resources

GENERATE_COMMAND = (sys.executable, "-m", "worker.trainer.answers.evaluation")
GRADE_COMMAND = (sys.executable, "-m", "worker.evaluations.grade")
GRADING_MEMORY_BYTES = 2 << 30
GRADING_SECONDS, GRADING_SECONDS_PER_ROW = 60.0, 2.0
GENERATION_ERRORS = {
    ExitCode.BAD_SPEC: EvaluationErrorCode.MODEL_UNAVAILABLE,
    ExitCode.OUT_OF_MEMORY: EvaluationErrorCode.OUT_OF_MEMORY,
}


class Evaluator(ProgramRunner[Evaluation]):
    """Runs the evaluations of one GPU slot."""

    kind = "evaluate"
    table = Evaluation

    def __init__(
        self,
        resources: Resources,
        owner: str,
        lock: Callable[[], AbstractContextManager[int | None]],
        capacity: Callable[[], WorkerCapacity] | None = None,
        generate_command: Sequence[str] = GENERATE_COMMAND,
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
        grade_command: Sequence[str] = GRADE_COMMAND,
    ) -> None:
        """`lock` holds the slot's device while the block lasts."""
        super().__init__(resources, owner, lock, alone)
        self._capacity = capacity
        self._generate_command = generate_command
        self._grade_command = grade_command

    def claim(self, session: Session) -> Evaluation | None:
        capacity = self._capacity() if self._capacity else None
        settings = self.settings
        half_life_seconds = settings.fair_share_half_life_seconds
        return evaluations.claim(session, self.owner, settings.lease_ttl_seconds, capacity, half_life_seconds)

    def work(self, attempt: ProgramAttempt[Evaluation]) -> None:
        """Read the rows, generate, grade, store."""
        directory = attempt.directory
        workdir.create_empty(directory)
        loaded = prepare.load(attempt, attempt.row)
        inputs = prepare.read_file(self.resources, loaded, attempt.check_running)
        self._plan(attempt, loaded, inputs)
        prepare.write_spec(self.resources, loaded, inputs, directory)
        attempt.check_running()
        started, answers, seconds = self._generate(attempt, len(inputs.prompts))
        asked = ask_endpoints(self.settings, loaded.settings, inputs.rows, answers, attempt.wait)
        prepare.write_grading(loaded, inputs, started, seconds, *asked, directory)
        self._publish(attempt, self._grade(attempt, len(inputs.rows)))

    def fail(self, session: Session, row: Evaluation, error: AttemptFailed, retries: Retries | None) -> object:
        return evaluations.end_attempt(session, row, error.code, error.message, retries)

    def _plan(self, attempt: ProgramAttempt[Evaluation], loaded: LoadedEvaluation, inputs: EvaluationInputs) -> None:
        """Replace the plan by the one with the counted rows and tokens."""
        measured = attempt.transact(lambda session: evaluations.seconds_per_answer(session, loaded.base.name))
        plan = make_plan(loaded.settings, len(inputs.rows), inputs.prompt_tokens, measured, loaded.job.progress)
        seconds = plan.estimated_seconds
        attempt.update(plan=plan.model_dump(), estimated_finish=None if seconds is None else _in_seconds(seconds))

    def _generate(
        self, attempt: ProgramAttempt[Evaluation], rows: int
    ) -> tuple[GenerationStarted, dict[str, list[ModelAnswer]], float]:
        """What the program wrote, the answers of each model, and the seconds it took."""
        began, answers_path = time.monotonic(), attempt.directory / ANSWERS
        write_progress = _progress_writer(attempt, answers_path, 2 * rows)
        command = [*self._generate_command, str(attempt.directory)]
        ended = attempt.run_program("generation", command, on_wait=write_progress)
        write_progress()  # the last count, which stays while a reference is asked
        ended.check(GENERATION_ERRORS)
        started, answers = _read_answers(answers_path, rows)
        return started, answers, time.monotonic() - began

    def _grade(self, attempt: ProgramAttempt[Evaluation], rows: int) -> GradedEvaluation:
        """Grade the answers in a process of its own: what a client sends decides how long a comparison takes."""
        limits = ProgramLimits(GRADING_MEMORY_BYTES, GRADING_SECONDS + GRADING_SECONDS_PER_ROW * rows)
        ended = attempt.run_program("grading", [*self._grade_command, str(attempt.directory)], 1, limits)
        if ended.exit_code == ExitCode.OUT_OF_MEMORY:
            text = f"The grading needs more than its {GRADING_MEMORY_BYTES:,} bytes of memory; evaluate fewer rows"
            raise AttemptFailed(EvaluationErrorCode.OUT_OF_MEMORY, text, is_final=True)
        ended.check({})
        return GradedEvaluation.model_validate_json((attempt.directory / SUMMARY).read_bytes())

    def _publish(self, attempt: ProgramAttempt[Evaluation], graded: GradedEvaluation) -> None:
        evaluation, summary = attempt.row, graded.summary
        result = graded.model_dump(mode="json")
        prefix = f"jobs/{evaluation.job_id}/evaluations/{evaluation.id}/{evaluation.attempt}"
        adapter, outbox = attempt.directory / DIRECTORY, attempt.directory / OUTBOX
        if record := record_of(evaluation.id, evaluation.file_id, result["summary"]):
            record_evaluation(adapter, record)
            manifest = clean(read_manifest(adapter))
            archive = StoredFile(ARCHIVE, f"{prefix}/{ARCHIVE}", *describe_archive(adapter))
            for path in (adapter / CARD, adapter / MANIFEST):
                if path.exists():
                    path.rename(outbox / path.name)

        def succeed(session: Session, stored: list[File]) -> None:
            ids = {file.filename: file.id for file in stored}
            row = evaluations.succeed(
                session,
                attempt.lease,
                f"Evaluation {evaluation.id} succeeded. {clean_text(summary_sentence(summary))}",
                precision=summary.precision,
                **result,
                results_file_id=ids[RESULTS],
                report_file_id=ids[REPORT],
            )
            if record:
                changed = [file for file in stored if file.filename in (CARD, MANIFEST)]
                archive_row = archive.row(evaluation.project_id, evaluation.job_id)
                evaluations.publish_adapter(session, row, changed, archive_row, manifest)

        attempt.publish(outbox, prefix, succeed)


def _progress_writer(attempt: ProgramAttempt[Evaluation], answers: Path, total: int) -> Callable[[], None]:
    """A function that writes the number of answers to the row if it has changed, and when the last one is expected."""
    written, began = -1, time.monotonic()

    def write() -> None:
        nonlocal written
        count = max(0, answers.read_bytes().count(b"\n") - 1) if answers.exists() else 0
        if count == written or attempt.fenced:
            return
        written = count
        columns: dict[str, Any] = {"progress": {"answers": count, "total_answers": total}}
        if count:  # until then that of the plan
            columns["estimated_finish"] = _in_seconds((time.monotonic() - began) * (total - count) / count)
        with suppress(FencedError):  # the watchdog kills the process
            attempt.update(**columns)

    return write


def _in_seconds(seconds: float) -> ColumnElement[datetime]:
    """The time in so many seconds, by the clock of the database."""
    return func.clock_timestamp() + timedelta(seconds=seconds)


def _read_answers(path: Path, count: int) -> tuple[GenerationStarted, dict[str, list[ModelAnswer]]]:
    """The answers by model, in the order of the rows. Raises AttemptFailed if one is missing."""
    first, *lines = path.read_bytes().splitlines()
    by_model: dict[str, dict[int, ModelAnswer]] = {role: {} for role in ROLES}
    for line in lines:
        answer = Answer.model_validate_json(line)
        by_model[answer.model][answer.row] = ModelAnswer(answer.text, answer.tokens, answer.is_cut)
    if any(answers.keys() != set(range(count)) for answers in by_model.values()):
        raise AttemptFailed(EvaluationErrorCode.SERVER_ERROR, "The generation left out rows")
    ordered = {model: [answers[row] for row in range(count)] for model, answers in by_model.items()}
    return GenerationStarted.model_validate_json(first), ordered
