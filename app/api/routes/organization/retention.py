"""Retention rules, for admins."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.auth import AUTHENTICATED
from app.api.dependencies import SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.operations import ChangeRetention, RetentionRuleList, changes_of
from app.api.transport.json_body import JsonBody
from app.services.operations import retention

router = APIRouter(
    prefix="/v1/organization",
    tags=["Projects and keys"],
    dependencies=[AUTHENTICATED],
    route_class=IdempotentRoute,
)


@router.get("/retention_rules", response_model=RetentionRuleList, summary="List retention rules")
def list_rules(
    session: SessionDep,
    project_id: Annotated[str | None, Query(description="Only rules of this project.")] = None,
    include_due: Annotated[bool, Query(description="Add what each rule deletes now.")] = False,
) -> Any:
    """The rules of every project that is not archived. Without a rule nothing is deleted for its age."""
    return {"data": retention.view(session, project_id, include_due)}


@router.post(
    "/projects/{project_id}/retention_rules",
    response_model=RetentionRuleList,
    summary="Change the retention rules of a project",
)
def change_rules(project_id: str, body: JsonBody[ChangeRetention], session: SessionDep) -> Any:
    """Returns all rules of the project as they are then. With `dry_run` they are shown with their effect."""
    apply = retention.preview if body.dry_run else retention.change
    return {"data": apply(session, project_id, changes_of(body))}
