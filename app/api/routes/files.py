"""/v1/files: uploads, downloads, lists of files, and a report on a dataset before a job uses it."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api.auth import CallerDep
from app.api.dependencies import AppStateDep, SessionDep, hold_connection_permit
from app.api.idempotency import IdempotentRequestDep, IdempotentRoute
from app.api.openapi import responses
from app.api.schemas.common import Deleted, deleted, list_of
from app.api.schemas.file_reports import FileReportBody
from app.api.schemas.files import FileBody, UpdateFile
from app.api.transport.file_response import content_response
from app.api.transport.json_body import NO_BODY, JsonBody
from app.api.transport.pagination import list_page, paged
from app.api.transport.request_bodies import MAX_FORM_OVERHEAD_BYTES, Form, limit_body, read_form
from app.db.engine import transaction
from app.db.files import delete
from app.db.tables import File
from app.domain.datasets.preparation import PREPARATION_FIELDS, Preparation, whole_number
from app.domain.error_text.json_text import as_json, listed
from app.domain.files import EXPIRES_SECONDS, PURPOSES, Purpose, clean_filename
from app.domain.methods import METHODS
from app.errors import BadRequest
from app.services.access.idempotency import fingerprint_of
from app.services.datasets import profile
from app.services.datasets.check_process import CheckProcess
from app.services.datasets.profile import MAX_PREVIEW_ROWS, ProfileInputs
from app.services.files import files
from app.services.files.file_preparation import ingest_prepared
from app.services.files.files import StagedFile, is_long
from app.services.resources import Page

# Of files that clients upload and of files that a service creates.
AnyPurpose = Literal[Purpose, "fine-tune-results", "assistants_output", "batch_output"]
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]", *PREPARATION_FIELDS)
MAX_LIST = 10_000

router = APIRouter(prefix="/v1/files", tags=["Files"], route_class=IdempotentRoute)


@router.post("", response_model=FileBody, summary="Upload a file", openapi_extra=responses.UPLOAD_FILE)
async def create_file(
    request: Request, caller: CallerDep, app_state: AppStateDep, idempotent_request: IdempotentRequestDep
) -> Any:
    """The file is streamed to disk. Each line of a file for fine-tuning is checked; an error lists ten findings.

    With `columns` a table becomes chat examples, each row one: CSV, TSV, Excel (.xlsx) or Parquet. With
    `held_out_percent` a second file gets so many of the rows, and `held_out_file_id` names it: with the shares of each
    label, if the outputs are few different ones, and without rows whose input is also in the first file. A job on the
    first file validates and evaluates with the second one by default. An error lists 20 rows.
    """
    settings, io_pools = app_state.settings, app_state.io_pools
    max_bytes = settings.max_file_bytes
    body = limit_body(request, max_bytes + MAX_FORM_OVERHEAD_BYTES, partial(files.file_too_large, max_bytes))
    staged = await io_pools.write(StagedFile, app_state.storage.staging, max_bytes)
    try:
        form = await read_form(io_pools, request.headers.get("content-type", ""), body, "file", FIELDS, staged.write)
        file = _new_file(caller.project_id, form)
        preparation = Preparation.parse(form.fields)
        ingest = files.ingest_file if preparation is None else partial(ingest_prepared, preparation=preparation)
        accept = partial(
            ingest,
            app_state.sessions,
            app_state.storage,
            file,
            expires_after=_expires_after(form.fields),
            staged=staged,
            max_line_bytes=settings.max_line_bytes,
            before_insert=lambda session: idempotent_request.reserve(session, _fingerprint(form, staged)),
            after_insert=lambda session, created: idempotent_request.store_response(
                session, 200, FileBody.model_validate(created).model_dump_json()
            ),
        )
        if preparation is not None or is_long(file.purpose, staged.size_bytes):
            file = await app_state.check_limiter.run(request, caller.key_id, True, lambda check: accept(check=check))
        else:
            file = await io_pools.finishing(staged.size_bytes).run(caller.key_id, accept, check=CheckProcess())
    finally:
        staged.discard()
    return file


@router.get("", response_model=list_of(FileBody), summary="List files")
def list_files(
    caller: CallerDep,
    session: SessionDep,
    page: Annotated[Page, paged(MAX_LIST, MAX_LIST)],
    order: Annotated[Literal["asc", "desc"], Query(description="Order by creation time.")] = "desc",
    purpose: Annotated[AnyPurpose | None, Query()] = None,
) -> Any:
    """Newest first unless `order` is asc. `purpose` selects the files with that purpose."""
    return list_page(files.page(session, caller.project_id, page, order == "asc", purpose), page.limit)


@router.get("/{file_id}", response_model=FileBody, summary="Get a file")
def get_file(file_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """Size, digest and expiry of a file."""
    return files.get(session, caller.project_id, file_id)


@router.post("/{file_id}", response_model=FileBody, summary="Change a file")
def update_file(file_id: str, body: JsonBody[UpdateFile], caller: CallerDep, session: SessionDep) -> Any:
    """Rename an uploaded file, or set where an imported one comes from: jobs that are created later show it, too."""
    file = files.get(session, caller.project_id, file_id)
    given: dict[str, Any] = {} if body.filename is None else {"filename": body.filename}
    if "origin" in body.model_fields_set:
        given["origin"] = body.origin and body.origin.model_dump(exclude_none=True)
    return files.change(session, file, given)


@router.delete("/{file_id}", response_model=Deleted, summary="Delete a file")
def delete_file(file_id: str, caller: CallerDep, session: SessionDep) -> Any:
    """The file disappears at once; its bytes are kept until no unfinished job needs them."""
    delete(session, files.get(session, caller.project_id, file_id))
    return deleted(FileBody, file_id)


@router.get("/{file_id}/content", summary="Download a file", response_class=Response, responses=responses.CONTENT)
def get_content(
    file_id: str, request: Request, caller: CallerDep, session: SessionDep, app_state: AppStateDep
) -> Response:
    """The bytes as uploaded. `Range` and `If-Range` support one range; a request for several ranges receives the whole
    file. A matching `If-None-Match` receives 304.
    """
    file = files.get(session, caller.project_id, file_id)
    is_results_csv = file.purpose == "fine-tune-results" and file.filename.endswith(".csv")
    as_base64 = app_state.settings.results_csv_base64 and is_results_csv
    return content_response(app_state.storage, file, request, as_base64)


def _fingerprint(form: Form, staged: StagedFile) -> str:
    """Hash fields and content, not the body: a client uses a new boundary each time it sends a form."""
    return fingerprint_of({"fields": form.fields, "filename": form.filename, "sha256": staged.sha256})


def _new_file(project_id: str, form: Form) -> File:
    if not form.has_file:
        raise BadRequest(
            "you must provide file: a form field with the content of the file", "file", "missing_required_parameter"
        )
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise BadRequest(
            f"you must provide purpose: one of {', '.join(PURPOSES)}", "purpose", "missing_required_parameter"
        )
    if purpose not in PURPOSES:
        raise BadRequest(
            f"purpose: {as_json(purpose)} is not a supported purpose; allowed: {', '.join(PURPOSES)}", "purpose"
        )
    return files.new_file(project_id, purpose, clean_filename(form.filename))


def _expires_after(fields: dict[str, str]) -> timedelta | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise BadRequest(
            f"expires_after[anchor]: {as_json(anchor)} is not supported; allowed: created_at", "expires_after[anchor]"
        )
    min_seconds, max_seconds = EXPIRES_SECONDS
    expires_seconds = whole_number(seconds or "", min_seconds, max_seconds)
    if expires_seconds is None:
        text = f"expires_after[seconds]: {as_json(seconds)} is not a whole number from {min_seconds} to {max_seconds}"
        raise BadRequest(text, "expires_after[seconds]")
    return timedelta(seconds=expires_seconds)


@router.post(
    "/{file_id}/validate", response_model=FileReportBody, summary="Report on a dataset", dependencies=[NO_BODY]
)
async def validate_file(
    request: Request,
    file_id: str,
    caller: CallerDep,
    app_state: AppStateDep,
    model: Annotated[
        str | None,
        Query(description="The model whose tokenizer and chat template are used; required."),
    ] = None,
    validation_file: Annotated[
        str | None, Query(description="Id of a validation file: the report lists the rows that both files contain.")
    ] = None,
    method: Annotated[
        str | None, Query(description=f"{listed(tuple(METHODS))}. Default: the method of the first row.")
    ] = None,
    context_length: Annotated[int | None, Query(description="Tokens. Default: the model's.")] = None,
    rows: Annotated[
        int, Query(ge=0, le=MAX_PREVIEW_ROWS, description="How many rows to show as the model sees them.")
    ] = 3,
) -> Any:
    """Format, findings with line numbers, token counts, truncated and empty rows, duplicates, and rows as trained.

    The rules are those of a job's validation. Nothing is created.
    """

    def load_inputs() -> ProfileInputs:
        given = (model, validation_file, method, context_length, rows)
        with transaction(app_state.sessions) as session:
            return profile.load_inputs(session, app_state.settings, caller.project_id, file_id, *given)

    async with hold_connection_permit(request):
        inputs = await run_in_threadpool(load_inputs)
    work = partial(profile.make_profile, app_state.storage, inputs)
    return FileReportBody.of(await app_state.check_limiter.run(request, caller.key_id, profile.is_long(inputs), work))
