"""/v1/files/{id}/validate: a report on a dataset, before a job uses it."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from app.api.auth import CallerDep
from app.api.dependencies import AppState, AppStateDep
from app.api.schemas.file_reports import FileReportBody
from app.api.transport.json_body import NO_BODY
from app.db.engine import transaction
from app.services.datasets import profile
from app.services.datasets.profile import ProfileInputs, ProfileRequest

router = APIRouter(prefix="/v1/files", tags=["Files"])


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
    method: Annotated[str | None, Query(description="supervised or dpo. Default: the method of the first row.")] = None,
    context_length: Annotated[int | None, Query(description="Tokens. Default: the model's.")] = None,
    rows: Annotated[int, Query(description="How many rows to show as the model sees them, up to 50.")] = 3,
) -> Any:
    """Format, findings with line numbers, token counts, truncated and empty rows, duplicates, and rows as trained.

    The rules are those of a job's validation. Nothing is created.
    """
    profile_request = ProfileRequest(model, validation_file, method, context_length, rows)
    inputs = await app_state.check_limiter.run_query(
        caller.key_id, partial(_load_inputs, app_state, caller.project_id, file_id, profile_request)
    )
    work = partial(profile.make_profile, app_state.storage, inputs)
    return FileReportBody.of(await app_state.check_limiter.run(request, caller.key_id, profile.is_long(inputs), work))


def _load_inputs(app_state: AppState, project_id: str, file_id: str, profile_request: ProfileRequest) -> ProfileInputs:
    with transaction(app_state.sessions) as session:
        return profile.load_inputs(session, app_state.settings, project_id, file_id, profile_request)
