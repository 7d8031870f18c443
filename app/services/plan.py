"""What a job would need, before it is created: counted, reckoned, and held against the workers that are there.

Read in one transaction, count and reckon outside of it; nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy.orm import Session

from app.db import workers
from app.domain.catalog import CatalogEntry, RefusedModel, describe
from app.domain.dataset_report import Report
from app.domain.estimate import Placement, Work, place
from app.domain.needs import Place
from app.domain.spec import JobSpec
from app.errors import InvalidDataset, NotFound, Unavailable
from app.services.counting import Counter
from app.services.requests import JobRequest, resolved
from app.storage import Storage

Verdict = Literal["fits", "no_device_fits", "no_worker"]


@dataclass(frozen=True)
class Question:
    """What was read of a request and of the world."""

    spec: JobSpec
    entry: CatalogEntry
    directory: Path
    manifest_sha256: str
    training_file_id: str
    storage_key: str
    file_sha256: str
    file_bytes: int
    places: Sequence[Place]


@dataclass(frozen=True)
class Answer:
    question: Question
    report: Report
    work: Work
    placements: Sequence[Placement]  # in the order of question.places

    @property
    def verdict(self) -> Verdict:
        if not self.placements:
            return "no_worker"
        return "fits" if any(each.fits for each in self.placements) else "no_device_fits"

    @property
    def message(self) -> str:
        if not self.placements:
            return "No worker that trains is alive, so there is nothing to hold the job against; it would wait."
        fitting = [each for each in self.placements if each.fits]
        if fitting:
            return min(fitting, key=lambda each: each.seconds).message
        nearest = min(self.placements, key=lambda each: each.memory.total / each.device.memory_bytes)
        return f"No device here has room for this job; it would fail as out_of_memory. {nearest.message}"


def ask(session: Session, project_id: str, request: JobRequest) -> Question:
    """Raises what creating the job would."""
    base, training_file, _, spec = resolved(session, project_id, request)
    return Question(
        spec=spec,
        entry=CatalogEntry.model_validate(base.entry),
        directory=Path(base.directory),
        manifest_sha256=base.manifest_sha256,
        training_file_id=training_file.id,
        storage_key=training_file.storage_key,
        file_sha256=training_file.sha256,
        file_bytes=training_file.bytes,
        places=workers.places(session, spec, base.manifest_sha256),
    )


def answer(storage: Storage, counter: Counter, question: Question) -> Answer:
    """Raises InvalidDataset for a file that no job could be trained on; BadRequest, Unavailable as Counter.count."""
    spec = question.spec
    key = (question.manifest_sha256, question.file_sha256, spec.hyperparameters.context_length)
    try:
        with storage.open(question.storage_key) as file:
            report = counter.count(key, question.directory, file, question.file_bytes)
    except FileNotFoundError as error:
        text = f"invalid training_file: {question.training_file_id}. Its bytes are gone from storage."
        raise NotFound(text, "training_file") from error
    _refuse_unfit(report)
    work = Work.of(spec, report.lengths)
    entry = _whole(question.entry, question.directory)
    placements = [place(entry, spec, work, each.device, each.measurements) for each in question.places]
    return Answer(question, report, work, placements)


def _refuse_unfit(report: Report) -> None:
    if report.findings:
        raise InvalidDataset(" ".join(f"{finding}." for finding in report.findings), "training_file")
    if not len(report.lengths):
        raise InvalidDataset("No example has a token to learn within context_length.", "training_file")


def _whole(entry: CatalogEntry, directory: Path) -> CatalogEntry:
    """An entry that was registered before plans were made lacks the widths of a layer; its directory has them."""
    if entry.decoder_layers:
        return entry
    try:
        return describe(directory)
    except (RefusedModel, OSError) as error:
        raise Unavailable("The base model's directory cannot be read by the API; ask its operator.", "model") from error
