"""Trial answers of one GPU slot: while it is idle, a thread offers it and answers one question at a time.

A claim of a job, or of an evaluation, never waits: `suspended` kills the program that generates, and the question ends
with an error. The program holds a lock of its own, so that one which cannot be killed is not started twice.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.engine import DATABASE_UNAVAILABLE, first_line, transaction
from app.db.tables import BaseModelRow, Checkpoint, File, Job
from app.domain.answers.trial import (
    IDLE_SECONDS,
    INSTEAD,
    MAX_ADAPTERS,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_SECONDS,
    AdapterOfAnswer,
    AnswerSpec,
    TrialControl,
    TrialQuestion,
    TrialRecord,
)
from app.domain.jobs.spec import JobSpec, QuantizationSpec
from app.log import get_logger
from app.trial_queue import QUEUE_UNAVAILABLE, TrialSlot
from worker.jobs.base_and_adapter import (
    AttemptFailed,
    fetch_adapter_files,
    layer_lora,
    load_base,
    load_files,
    read_adapter,
    verify_base,
)
from worker.jobs.child_program import LOG_NAME, ChildProgram, launch
from worker.node.resources import Resources
from worker.node.slot import try_lock

ANSWER_COMMAND = (sys.executable, "-m", "worker.trainer.answers.trial")
SPEC = "spec.json"
KILL_SECONDS = 2.0  # the longest time that a claimed job waits for the end of the program
STOP_SECONDS = 5.0  # from the disconnect of a client until a program that computes for it is killed
SCHEMA_SIGNALS = (-signal.SIGPROF, -signal.SIGABRT)  # exit codes: `schema_limits` of the program were exceeded
ALIVE_SECONDS = 1.0  # between two signs of life while the base model is loaded
RETRY_SECONDS = 5.0
SCHEMA_TEXT = (
    f"response_format: the schema takes more than {MAX_SCHEMA_SECONDS:g} s or {MAX_SCHEMA_BYTES >> 30} GB to compile; "
    f"use fewer or simpler patterns, or {INSTEAD}"
)
SUSPENDED_TEXT = (
    "The worker has begun a training job or an evaluation, which ends trial answers. Send the request again when "
    f"it has ended, or {INSTEAD}."
)

log = get_logger(__name__)


@dataclass(frozen=True)
class PreparedAnswer:
    spec: AnswerSpec
    adapter: AdapterOfAnswer | None

    @property
    def program(self) -> str:
        """Questions with the same value may be answered by one process.

        DoRA and modules_to_save replace modules of the loaded base model, so such an adapter has a process of its own.
        """
        lora = self.adapter.lora if self.adapter else None
        own = self.adapter.manifest_sha256 if self.adapter and lora and (lora.use_dora or lora.modules_to_save) else ""
        return f"{self.spec.base.manifest_sha256} {self.spec.quantization} {own}"


def prepare(resources: Resources, question: TrialQuestion, directory: Path) -> PreparedAnswer:
    """Fetch the adapter into `directory`, once. Raises AttemptFailed, OSError, and what PostgreSQL raises."""
    with transaction(resources.sessions) as session:
        base, job, checkpoint, rows = _load(session, question)
    settings = resources.settings
    job_spec = JobSpec.model_validate(job.spec) if job else None
    spec = AnswerSpec(
        base=verify_base(base),
        quantization=job_spec.quantization if job_spec else QuantizationSpec(),
        dtype_is_free=job_spec.dtype_is_free if job_spec else True,
        context_length=base.catalog_entry.context_length,
        device=settings.device,
        threads=settings.threads,
    )
    if checkpoint is None:
        return PreparedAnswer(spec, None)
    return PreparedAnswer(spec, _adapter(resources, base, rows, directory / checkpoint.id))


def _load(session: Session, question: TrialQuestion) -> tuple[BaseModelRow, Job | None, Checkpoint | None, list[File]]:
    base = models.get_base(session, question.project_id, question.model)
    if base is not None:
        return base, None, None, []
    tuned = models.get_usable(session, question.project_id, question.model)
    if tuned is None:
        raise AttemptFailed("server_error", f"The model {question.model} was deleted.")
    job, checkpoint = session.get_one(Job, tuned.job_id), session.get_one(Checkpoint, tuned.checkpoint_id)
    base = load_base(session, tuned.project_id, job.base_model)
    return base, job, checkpoint, load_files(session, checkpoint.file_ids)


def _make_room(directory: Path) -> None:
    """Delete what was not fetched completely, and the adapters that were not used for the longest time."""
    for partial in directory.glob("*.part"):
        shutil.rmtree(partial, ignore_errors=True)
    last_used_first = sorted(directory.glob("*"), key=lambda each: each.stat().st_mtime, reverse=True)
    for adapter in last_used_first[MAX_ADAPTERS - 1 :]:
        shutil.rmtree(adapter, ignore_errors=True)


def _adapter(resources: Resources, base: BaseModelRow, rows: list[File], directory: Path) -> AdapterOfAnswer:
    if not directory.exists():  # a checkpoint never changes
        _make_room(directory.parent)
        partial = directory.with_suffix(".part")
        partial.mkdir(parents=True)
        fetch_adapter_files(resources.storage, rows, partial)
        partial.rename(directory)
    os.utime(directory)  # for `_make_room`
    fetched = read_adapter(base, directory)
    lora = layer_lora(fetched, base)
    return AdapterOfAnswer(directory=fetched.directory, manifest_sha256=fetched.manifest_sha256, lora=lora)


class AnswerProcess(ChildProgram):
    """One running program with one base model. A thread reads its records; None is the end of its output."""

    def __init__(self, command: Sequence[str], directory: Path, lock: int, threads: int | None, program: str) -> None:
        """Raises OSError. The parent-death signal follows the calling thread."""
        self.program = program
        self.records: Queue[TrialRecord | None] = Queue()
        process = launch([*command, str(directory)], directory, lock, threads)
        super().__init__(process, directory / LOG_NAME, self._read)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, control: TrialControl) -> None:
        """A program that has ended is noticed by the end of its output."""
        self.send_line(control.model_dump_json())

    def _read(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in pipe:
                with contextlib.suppress(ValidationError):  # a library prints to standard output
                    self.records.put(TrialRecord.model_validate_json(line))
        self.records.put(None)


class TrialAnswers:
    def __init__(
        self,
        resources: Resources,
        owner: str,
        slot_name: str,
        models: Callable[[], Collection[str]],
        command: Sequence[str] = ANSWER_COMMAND,
    ) -> None:
        self._resources = resources
        self._slot = TrialSlot(resources.settings.redis_url, owner)
        self._models = models
        self._command = command
        self._lock_path = resources.settings.data_dir / "run" / f"{slot_name}.trial.lock"
        self._directory = resources.settings.data_dir / "run" / f"{slot_name}.trial"  # `work` is cleaned up by job
        self._guard = threading.Lock()  # of the two fields below: a suspension sees every process that was started
        self._suspensions = 0
        self._process: AnswerProcess | None = None
        self._used_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"trial.{slot_name}", daemon=True)

    def start(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)  # adapters of a worker that was killed
        self._thread.start()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Answer nothing in the block, and end what is being answered."""
        with self._guard:
            self._suspensions += 1
            process, self._process = self._process, None
        if process is not None and process.close(KILL_SECONDS) is None:
            log.error("the program of trial answers does not end", seconds=KILL_SECONDS)
        try:
            yield
        finally:
            with self._guard:
                self._suspensions -= 1

    def close(self) -> None:
        """Call it after `resources.stop` was set."""
        self._thread.join(2 * RETRY_SECONDS)
        self._unload()
        self._slot.close()

    def _run(self) -> None:
        stop = self._resources.stop
        while not stop.is_set():
            if time.monotonic() - self._used_at > IDLE_SECONDS:
                self._unload()
            if self._suspensions or not self._models():
                stop.wait(ALIVE_SECONDS / 4)
                continue
            try:
                self._answer_next()
            except QUEUE_UNAVAILABLE as error:
                log.warning("no trial answers: the broker does not answer", error=str(error))
                stop.wait(RETRY_SECONDS)
            except Exception:
                log.exception("trial answers failed")
                stop.wait(RETRY_SECONDS)

    def _answer_next(self) -> None:
        question = self._slot.next_question(self._models())
        if question is None:
            return
        self._slot.refuse_others()  # which have claimed the slot while this question was on its way
        log.info("trial answer", model=question.model, question=question.id)
        self._slot.send(TrialRecord(id=question.id, type="alive"))
        try:
            self._answer(question)
        except AttemptFailed as error:
            self._slot.send(TrialRecord(id=question.id, type="error", message=error.message))
        except (OSError, *DATABASE_UNAVAILABLE) as error:
            if isinstance(error, QUEUE_UNAVAILABLE[0]):
                raise
            log.warning("trial answer failed", error=first_line(error))
            text = "The worker could not read the files of the model; send the request again."
            self._slot.send(TrialRecord(id=question.id, type="error", message=text))
        finally:
            self._slot.refuse_others()
            self._used_at = time.monotonic()

    def _answer(self, question: TrialQuestion) -> None:
        with self._keepalives(question):
            prepared = prepare(self._resources, question, self._directory / "adapters")
        process = self._loaded(prepared)
        if process is None:
            self._slot.send(TrialRecord(id=question.id, type="error", reason="busy"))
            return
        try:
            self._pass_on(process, question, prepared.adapter)
        except BaseException:
            self._end_process()  # its remaining records would be taken for those of the next answer
            raise

    @contextlib.contextmanager
    def _keepalives(self, question: TrialQuestion) -> Iterator[None]:
        """Send keepalives in the block: a large adapter takes longer to fetch than the API waits for a record."""
        ended = threading.Event()

        def send() -> None:
            while not ended.wait(ALIVE_SECONDS):
                with contextlib.suppress(*QUEUE_UNAVAILABLE):
                    self._slot.send(TrialRecord(id=question.id, type="alive"))

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _pass_on(self, process: AnswerProcess, question: TrialQuestion, adapter: AdapterOfAnswer | None) -> None:
        """Send the question to the program, and its records to the API until the last one.

        A program that has loaded the base model is killed if it goes on without a client.
        """
        with self._keepalives(question):  # a long question fills the pipe until the program has started
            process.send(TrialControl(question=question, adapter=adapter))
        gone_at, is_loaded = math.inf, False
        while True:
            try:
                record = process.records.get(timeout=ALIVE_SECONDS)
                is_loaded = True
            except Empty:
                self._slot.refuse_others()
                record = TrialRecord(id=question.id, type="alive")
            if is_loaded and time.monotonic() - gone_at > STOP_SECONDS:
                self._end_process()
                return
            if record is None:
                record = self._end_record(process, question)
            if gone_at == math.inf and not self._slot.send(record):
                gone_at = time.monotonic()
                process.send(TrialControl(stop=question.id))
            if record.is_last or self._resources.stop.is_set():
                return

    def _loaded(self, prepared: PreparedAnswer) -> AnswerProcess | None:
        """The program with the base model; None if the slot has claimed a job meanwhile. Raises AttemptFailed."""
        process = self._process
        if process is not None and process.program == prepared.program and process.is_running:
            return process
        self._end_process()  # the directory has the adapter of this question already
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / SPEC).write_text(prepared.spec.model_dump_json(), encoding="utf-8")
        with try_lock(self._lock_path) as lock:
            if lock is None:
                raise AttemptFailed("server_error", "An earlier program of trial answers still runs on this worker.")
            with self._guard:
                if self._suspensions:
                    return None
                threads = self._resources.settings.threads
                self._process = AnswerProcess(self._command, self._directory, lock, threads, prepared.program)
                return self._process

    def _end_record(self, process: AnswerProcess, question: TrialQuestion) -> TrialRecord:
        if self._suspensions or self._process is not process:
            return TrialRecord(id=question.id, type="error", message=SUSPENDED_TEXT)
        exit_code = process.wait(KILL_SECONDS)
        log.warning("the program of trial answers ended", exit_code=exit_code, log_tail=process.log_tail()[-2_000:])
        self._unload()
        if question.json_schema is not None and exit_code in SCHEMA_SIGNALS:
            return TrialRecord(
                id=question.id, type="error", reason="invalid_value", message=SCHEMA_TEXT, param="response_format"
            )
        text = "The worker's program ended; its log has the details. Send the request again."
        return TrialRecord(id=question.id, type="error", message=text)

    def _unload(self) -> None:
        """Delete the directory also where a claimed job has ended the program."""
        self._end_process()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end_process(self) -> None:
        with self._guard:
            process, self._process = self._process, None
        if process is not None:
            process.close(KILL_SECONDS)
