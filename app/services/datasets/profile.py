"""A profile of a dataset for a model: the findings and counts of validation, before a job exists.

A process with a deadline reads the files (app.services.datasets.check_process). Of a file above SAMPLED_ABOVE_BYTES
every line is checked, but only every n-th row is tokenized; a megabyte of chat takes about 1.3 s.
The report contains the sampling and the line at which reading stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.orm import Session

from app.db.tables import File
from app.domain.datasets.profile import DatasetProfile, ProfileLimits, method_of_file, profile_dataset
from app.domain.error_text.json_text import as_json, listed
from app.domain.jobs.spec import DataParameters
from app.domain.methods import METHODS, MethodName
from app.errors import BadRequest
from app.services.datasets.check_process import CheckProcess, takes_long
from app.services.files import files
from app.services.files.files import open_content
from app.services.jobs import requests
from app.settings import Settings
from app.storage import Storage

SAMPLED_ABOVE_BYTES = 24 << 20
READ_TIMEOUT_SECONDS = 60.0
KILL_AFTER_SECONDS = 30.0  # beyond the timeout: for the last line and for the report
MAX_PREVIEW_ROWS = 50


@dataclass(frozen=True)
class ProfileInputs:
    """Everything that the reading needs, so that it holds no transaction."""

    file: File
    validation_file: File | None
    model: str
    directory: Path
    method: MethodName | None  # None: the method of the first row
    parameters: DataParameters  # with any method
    limits: ProfileLimits
    least_examples: int


@dataclass(frozen=True)
class Profile:
    inputs: ProfileInputs
    parameters: DataParameters  # with the method of the rows
    found: DatasetProfile


def load_inputs(
    session: Session,
    settings: Settings,
    project_id: str,
    file_id: str,
    model: str | None,
    validation_file: str | None,
    method: str | None,
    context_length: int | None,
    rows: int,
) -> ProfileInputs:
    """Raises NotFound for an unknown file or model, BadRequest for every other problem."""
    file = files.get(session, project_id, file_id)
    if not model:
        text = "model: is missing; name the model whose tokenizer and template are to be used"
        raise BadRequest(text, "model", "missing_required_parameter")
    base, _ = requests.find_model(session, project_id, model)
    most = base.catalog_entry.context_length
    other = None
    if validation_file is not None:
        other = requests.find_file(session, project_id, validation_file, "validation_file")
    requests.require_fine_tune_purpose(file, other, param="file_id")
    length = most if context_length is None else context_length
    if not 1 <= length <= most:
        text = f"context_length: {length} is not a whole number from 1 to {most}"
        raise BadRequest(text, "context_length")
    return ProfileInputs(
        file=file,
        validation_file=other,
        model=model,
        directory=Path(base.directory),
        method=_method(method),
        parameters=DataParameters(context_length=length),
        limits=ProfileLimits(
            max_line_bytes=settings.max_line_bytes,
            preview_rows=rows,
            tokenize_every=max(1, -(-file.bytes // SAMPLED_ABOVE_BYTES)),
            timeout_seconds=READ_TIMEOUT_SECONDS,
        ),
        least_examples=settings.min_training_examples,
    )


def is_long(inputs: ProfileInputs) -> bool:
    """Whether reading the files takes long."""
    validation_bytes = inputs.validation_file.bytes if inputs.validation_file else 0
    return takes_long(inputs.directory, inputs.file.bytes + validation_bytes)


def make_profile(storage: Storage, inputs: ProfileInputs, check: CheckProcess) -> Profile:
    """Read the files and return their profile.

    Raises NotFound if a file was deleted meanwhile, BadRequest after the deadline, Unavailable, CheckCancelledError.
    """
    with ExitStack() as opened:
        file = opened.enter_context(open_content(storage, inputs.file))
        validation_file = inputs.validation_file
        other = opened.enter_context(open_content(storage, validation_file)) if validation_file else None
        method = inputs.method or method_of_file(file, inputs.limits.max_line_bytes)
        file.seek(0)
        parameters = inputs.parameters.model_copy(update={"method": method})
        found = _read(inputs, parameters, [file, *([other] if other else [])], check)
    return Profile(inputs, parameters, found)


def _read(
    inputs: ProfileInputs, parameters: DataParameters, files: Sequence[BinaryIO], check: CheckProcess
) -> DatasetProfile:
    seconds = inputs.limits.timeout_seconds + KILL_AFTER_SECONDS
    try:
        return check.run_with_renderer(
            inputs.directory,
            profile_dataset,
            parameters,
            inputs.limits,
            files=files,
            deadline_seconds=seconds,
            max_line_bytes=inputs.limits.max_line_bytes,
        )
    except TimeoutError as error:
        text = f"The file could not be read within {seconds:.0f} s; the service is busy, or one of its lines is huge"
        text = f"{text}. Create the job: its validation takes the time it needs"
        raise BadRequest(text, code="validation_too_slow") from error


def _method(requested: str | None) -> MethodName | None:
    if requested is not None and requested not in METHODS:
        text = f"method: {as_json(requested)} is not offered here; allowed are {listed(tuple(METHODS))}"
        raise BadRequest(text, "method", "unsupported_value")
    return requested
