"""Run evaluations: a child process generates the answers, another one grades them, and a summary is stored.

A GPU slot runs them between training jobs, as both need the whole device.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from sqlalchemy.orm import Session

from app.db.jobs import evaluations, leased_rows
from app.db.jobs.claims import FencedError, Lease
from app.db.tables import Evaluation, File
from app.domain.evaluations.graders import make_plan
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
from app.domain.evaluations.summary import EvaluationSummary
from app.domain.jobs.states import ExitCode
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.log import get_logger
from worker.evaluations import prepare
from worker.evaluations.endpoints import ask_endpoints
from worker.evaluations.prepare import EvaluationInputs, Loaded
from worker.evaluations.report import summary_sentence
from worker.jobs.child_program import ProgramLimits, start_program, supervise, unexpected_exit
from worker.jobs.leased_rows import AttemptFailed, RowClaimer, RowLeaseKeeper
from worker.jobs.sanitize import clean_text
from worker.node.resources import Resources

GENERATE_COMMAND = (sys.executable, "-m", "worker.trainer.answers.evaluation")
GRADE_COMMAND = (sys.executable, "-m", "worker.evaluations.grade")
GRADING_MEMORY_BYTES = 2 << 30
GRADING_SECONDS, GRADING_SECONDS_PER_ROW = 60.0, 2.0

log = get_logger(__name__)


class Evaluator:
    """Runs the evaluations of one GPU slot, one at a time. `lock` holds the slot's device while the block lasts."""

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
        """`alone` ends what else the idle slot does, while its block lasts."""
        self.resources = resources
        self.settings = resources.settings
        self.owner = owner
        self._lock = lock
        self._capacity = capacity
        self._generate_command = generate_command
        self._grade_command = grade_command
        self._alone = alone
        self._claimer = RowClaimer(resources, Evaluation, owner)

    def run_next(self) -> bool:
        """Run one evaluation from its claim to its end; False if none is due, or the device is not free."""
        return self._claimer.run_next(
            "evaluate", self._claim, self._lock(), self._evaluate, self._end_failed, self._alone
        )

    def _claim(self, session: Session) -> Evaluation | None:
        capacity = self._capacity() if self._capacity else None
        settings = self.settings
        half_life_seconds = settings.fair_share_half_life_seconds
        return evaluations.claim(session, self.owner, settings.lease_ttl_seconds, capacity, half_life_seconds)

    def _evaluate(self, evaluation: Evaluation, keeper: RowLeaseKeeper[Evaluation], directory: Path, lock: int) -> None:
        """Read the rows, generate, grade, store. Raises AttemptFailed, AttemptInterrupted, FencedError."""
        loaded = prepare.load(keeper, evaluation)
        settings = loaded.settings
        inputs = prepare.read_file(self.resources, loaded, keeper.check_running)
        self._plan(loaded, inputs, keeper)
        prepare.write_spec(self.resources, loaded, inputs, directory)
        keeper.check_running()
        started, answers, seconds = self._generate(len(inputs.prompts), keeper, directory, lock)
        asked = ask_endpoints(self.settings, settings, inputs.rows, answers, self._waiter(keeper))
        prepare.write_grading(loaded, inputs, started, seconds, *asked, directory)
        summary = self._grade(len(inputs.rows), keeper, directory, lock)
        self._publish(evaluation, summary, keeper, directory)

    def _plan(self, loaded: Loaded, inputs: EvaluationInputs, keeper: RowLeaseKeeper[Evaluation]) -> None:
        """Replace the plan by the one with the counted rows and tokens."""

        def write(session: Session) -> None:
            measured = evaluations.seconds_per_answer(session, loaded.base.name)
            rows, progress = len(inputs.rows), loaded.job.progress
            plan = make_plan(loaded.settings, rows, inputs.prompt_tokens, measured, progress)
            leased_rows.update_held(session, Evaluation, keeper.lease, plan=plan.model_dump())

        keeper.transact(write)

    def _generate(
        self, rows: int, keeper: RowLeaseKeeper[Evaluation], directory: Path, lock: int
    ) -> tuple[GenerationStarted, dict[str, list[ModelAnswer]], float]:
        """What the program wrote, the answers of each model, and the seconds it took."""
        began = time.monotonic()
        process = start_program([*self._generate_command, str(directory)], directory, lock, self.settings.threads)
        write_progress = self._progress_writer(keeper, directory / ANSWERS, 2 * rows)
        exit_code = supervise(process, keeper, self.resources, "generation", write_progress)
        write_progress()  # the last count, which stays while a reference is asked
        if exit_code != ExitCode.DONE:
            raise _exit_failure(exit_code, process.last_stderr_line())
        started, answers = _read_answers(directory / ANSWERS, rows)
        return started, answers, time.monotonic() - began

    def _progress_writer(self, keeper: RowLeaseKeeper[Evaluation], answers: Path, total: int) -> Callable[[], None]:
        """A function that writes the number of answers to the row if it has changed."""
        written = -1

        def write() -> None:
            nonlocal written
            count = max(0, _count_lines(answers) - 1)
            if count == written or keeper.fenced:
                return
            written, progress = count, {"answers": count, "total_answers": total}
            with suppress(FencedError):  # the watchdog kills the process
                keeper.transact(
                    lambda session: leased_rows.update_held(session, Evaluation, keeper.lease, progress=progress)
                )

        return write

    def _grade(self, rows: int, keeper: RowLeaseKeeper[Evaluation], directory: Path, lock: int) -> EvaluationSummary:
        """Grade the answers in a process of its own: what a client sends decides how long a comparison takes."""
        limits = ProgramLimits(GRADING_MEMORY_BYTES, GRADING_SECONDS + GRADING_SECONDS_PER_ROW * rows)
        program = start_program([*self._grade_command, str(directory)], directory, lock, 1, limits)
        exit_code = supervise(program, keeper, self.resources, "grading")
        if exit_code == ExitCode.OUT_OF_MEMORY:
            text = f"The grading needs more than its {GRADING_MEMORY_BYTES:,} bytes of memory; evaluate fewer rows"
            raise AttemptFailed(EvaluationErrorCode.OUT_OF_MEMORY, text, is_final=True)
        if exit_code != ExitCode.DONE:
            raise unexpected_exit("grading", exit_code)
        return EvaluationSummary.model_validate_json((directory / SUMMARY).read_bytes())

    def _publish(
        self, evaluation: Evaluation, summary: EvaluationSummary, keeper: RowLeaseKeeper[Evaluation], directory: Path
    ) -> None:

        def succeed(session: Session, stored: list[File]) -> None:
            ids = {file.filename: file.id for file in stored}
            evaluations.succeed(
                session,
                keeper.lease,
                f"Evaluation {evaluation.id} succeeded. {clean_text(summary_sentence(summary))}",
                precision=summary.precision,
                summary=summary.model_dump(mode="json"),
                results_file_id=ids[RESULTS],
                report_file_id=ids[REPORT],
            )

        prefix = f"jobs/{evaluation.job_id}/evaluations/{evaluation.id}/{evaluation.attempt}"
        keeper.publish(evaluation, directory / OUTBOX, prefix, succeed)

    def _waiter(self, keeper: RowLeaseKeeper[Evaluation]) -> Callable[[float], None]:
        """A function that waits, and ends the wait with an error after a cancel or at a shutdown."""

        def wait(seconds: float) -> None:
            deadline = time.monotonic() + seconds
            keeper.check_running()
            while (rest := deadline - time.monotonic()) > 0:
                self.resources.stop.wait(min(rest, self.settings.watch_seconds))
                keeper.check_running()

        return wait

    def _end_failed(self, session: Session, lease: Lease, error: AttemptFailed) -> None:
        settings, code, text = self.settings, error.code, error.message
        if error.is_final:
            evaluations.fail(session, lease, code, text)
        else:
            held = leased_rows.lock_held(session, Evaluation, lease)
            delay_seconds, max_streak = settings.requeue_delay_seconds, settings.max_crash_streak
            evaluations.retry_or_fail(session, held, code, text, delay_seconds, max_streak)


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


def _count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _exit_failure(exit_code: int, reason: str) -> AttemptFailed:
    if exit_code == ExitCode.BAD_SPEC:
        return AttemptFailed(EvaluationErrorCode.MODEL_UNAVAILABLE, reason, is_final=True)
    if exit_code == ExitCode.OUT_OF_MEMORY:
        return AttemptFailed(EvaluationErrorCode.OUT_OF_MEMORY, reason, is_final=True)
    return unexpected_exit("generation", exit_code)
