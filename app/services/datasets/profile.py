"""A report on a data set for a model: what validation would say of it, before there is a job.

    python -m app.services.datasets.profile PARENT_PID ASKED DESCRIPTOR [DESCRIPTOR_OF_VALIDATION_FILE] > REPORT

A small file is read here, a large one in a process of its own, for so long and no longer. Of a file above
SAMPLED_ABOVE_BYTES every line is checked, but only every n-th row is tokenized; a megabyte of chat takes about 1.3 s.
The report says so, and where it stopped.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.orm import Session

from app.db.tables import File
from app.domain.base_models.catalog import CatalogEntry
from app.domain.datasets.profile import Limits, Survey, histogram, method_of_file, quantiles, survey
from app.domain.error_text.json_text import as_json
from app.domain.jobs.spec import Method
from app.errors import BadRequest, Unavailable
from app.services.datasets.check_process import Check, enter_check_process, takes_long
from app.services.files import files
from app.services.files.files import open_content
from app.services.jobs import requests
from app.settings import Settings
from app.storage import Storage
from app.system.tokenizer_files import load_renderer

SAMPLED_ABOVE_BYTES = 24 << 20
SECONDS = 60.0
KILL_AFTER_SECONDS = 30.0  # on top: one line, and the report itself
MOST_PREVIEW_ROWS = 50
METHODS: tuple[Method, ...] = ("supervised", "dpo")

Json = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """A client's words, still unchecked."""

    model: str | None
    validation_file: str | None
    method: str | None
    context_length: int | None
    rows: int


@dataclass(frozen=True)
class Question:
    """What was read of the rows, for the part that takes long and holds no transaction."""

    file: File
    validation_file: File | None
    model: str
    directory: Path
    method: Method | None
    limits: Limits
    least_examples: int


@dataclass(frozen=True)
class Answer:
    question: Question
    report: Json


def ask(session: Session, settings: Settings, project_id: str, file_id: str, wish: Wish) -> Question:
    """Raises NotFound for a file or a model that is not there, BadRequest for everything else."""
    file = files.get(session, project_id, file_id)
    if not wish.model:
        text = "model: is missing; name the model whose tokenizer and template are to be used"
        raise BadRequest(text, "model", "missing_required_parameter")
    base, _ = requests.find_model(session, project_id, wish.model)
    entry = CatalogEntry.model_validate(base.entry)
    validation_file = None
    if wish.validation_file is not None:
        validation_file = requests.find_file(session, project_id, wish.validation_file, "validation_file")
    requests.require_fine_tune_purpose(file, validation_file, param="file_id")
    return Question(
        file=file,
        validation_file=validation_file,
        model=wish.model,
        directory=Path(base.directory),
        method=_method(wish.method),
        limits=Limits(
            context_length=_context_length(wish.context_length, entry),
            max_line_bytes=settings.max_line_bytes,
            preview_rows=_within("rows", wish.rows, 0, MOST_PREVIEW_ROWS),
            tokenize_every=max(1, -(-file.bytes // SAMPLED_ABOVE_BYTES)),
            seconds=SECONDS,
        ),
        least_examples=settings.min_training_examples,
    )


def needs_process(question: Question) -> bool:
    """Whether the files are read in a process of their own."""
    return takes_long(question.directory, _total_bytes(question))


def answer(storage: Storage, question: Question, check: Check) -> Answer:
    """Report on the files.

    Raises NotFound when bytes have gone meanwhile, BadRequest when the time is over, Unavailable, CheckCancelledError.
    """
    with ExitStack() as opened:
        file = opened.enter_context(open_content(storage, question.file))
        held_out = question.validation_file
        other = opened.enter_context(open_content(storage, held_out)) if held_out else None
        method = question.method or method_of_file(file, question.limits.max_line_bytes)
        file.seek(0)
        if needs_process(question):
            report = _read_in_process(question.directory, file, method, question.limits, other, check)
        else:
            report = _read_here(question.directory, file, method, question.limits, other)
    return Answer(question, report)


def _total_bytes(question: Question) -> int:
    return question.file.bytes + (question.validation_file.bytes if question.validation_file else 0)


# --- where it is read -------------------------------------------------------------------------------------------------


def _read_here(directory: Path, file: BinaryIO, method: Method, limits: Limits, other: BinaryIO | None) -> Json:
    try:
        renderer = load_renderer(directory)
    except Exception as error:  # tokenizers raises a bare Exception
        raise _no_tokenizer() from error
    return _plain(survey(file, renderer, method, limits, other), method, limits.context_length)


def _read_in_process(
    directory: Path, file: BinaryIO, method: Method, limits: Limits, other: BinaryIO | None, check: Check
) -> Json:
    asked = {"directory": str(directory), "method": method, "limits": asdict(limits)}
    seconds = limits.seconds + KILL_AFTER_SECONDS
    try:
        return dict(json.loads(check.run(__name__, [json.dumps(asked)], [file, *([other] if other else [])], seconds)))
    except TimeoutError as error:
        text = f"The file could not be read within {seconds:.0f} s; the service is busy, or one of its lines is huge"
        text = f"{text}. Create the job: its validation takes the time it needs"
        raise BadRequest(text, code="validation_too_slow") from error
    except ChildProcessError as error:
        raise _no_tokenizer() from error


def _no_tokenizer() -> Unavailable:
    return Unavailable("The tokenizer of this base model cannot be read by the API; ask its operator.", "model")


def _plain(found: Survey, method: Method, context_length: int) -> Json:
    report = found.report
    return {
        "method": method,
        "rows": found.rows,
        "tokenized_rows": found.tokenized,
        "is_complete": found.is_complete,
        "is_validation_complete": found.is_validation_complete,
        "lines_read": found.lines_read,
        "formats": dict(found.formats),
        "findings": [vars(finding) for finding in report.findings],
        "finding_count": report.finding_count,
        "bad_lines": report.bad_lines,
        "warnings": [asdict(warning) for warning in report.warnings(method, context_length)],
        "tokens": report.tokens,
        "labelled_tokens": report.labelled_tokens,
        **{name: vars(getattr(report, name)) for name in ("cut", "empty", "masked")},
        "lengths": quantiles(found.lengths),
        "histogram": histogram(found.lengths),
        "previews": found.previews,
        "duplicate_rows": found.duplicate_rows,
        "duplicates": [[first, *lines] for first, lines in found.duplicates.items()],
        "rows_remembered": found.rows_remembered,
        "overlap_rows": found.overlap_rows,
        "overlap": found.overlap,
    }


# --- what was asked ---------------------------------------------------------------------------------------------------


def _method(asked: str | None) -> Method | None:
    if asked is None:
        return None
    known = next((method for method in METHODS if method == asked), None)
    if known is None:
        text = f"method: {as_json(asked)} is not offered here; allowed are {' and '.join(map(as_json, METHODS))}"
        raise BadRequest(text, "method", "unsupported_value")
    return known


def _context_length(asked: int | None, entry: CatalogEntry) -> int:
    return entry.context_length if asked is None else _within("context_length", asked, 1, entry.context_length)


def _within(name: str, asked: int, least: int, most: int) -> int:
    if not least <= asked <= most:
        raise BadRequest(f"{name}: {asked} is not a whole number from {least} to {most}", name)
    return asked


def main(arguments: list[str]) -> int:
    enter_check_process(int(arguments[0]))
    asked = json.loads(arguments[1])
    file, *others = (os.fdopen(int(descriptor), "rb") for descriptor in arguments[2:])
    report = _read_here(
        Path(asked["directory"]), file, asked["method"], Limits(**asked["limits"]), others[0] if others else None
    )
    sys.stdout.buffer.write(json.dumps(report).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
