"""/v1/fine_tuning/checkpoints/{model}/permissions: which other projects may use an `ft:` model.

The model is loaded before the body is read: the model of another project is a 404 whatever the body is.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from app.api.auth import CallerDep
from app.api.dependencies import AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.common import Deleted
from app.api.schemas.models import CreatePermissions, PermissionList
from app.api.transport.json_body import JsonBody
from app.api.transport.pagination import After, Limit, list_page
from app.db.engine import transaction
from app.db.tables import TunedModel
from app.services.access import permissions
from app.services.access.permissions import Order

MAX_PERMISSIONS = 100

router = APIRouter(prefix="/v1/fine_tuning/checkpoints", tags=["Checkpoint permissions"], route_class=IdempotentRoute)


def find_model(model: str, caller: CallerDep, app_state: AppStateDep) -> TunedModel:
    """Load the model in a separate transaction, so that no connection is held while a client sends its body."""
    with transaction(app_state.sessions) as session:
        return permissions.find_model(session, caller.project_id, caller.is_admin, model)


def find_model_as_admin(model: Annotated[TunedModel, Depends(find_model)], caller: CallerDep) -> TunedModel:
    permissions.require_admin(caller.is_admin)
    return model


ModelDep = Annotated[TunedModel, Depends(find_model)]
AdminModelDep = Annotated[TunedModel, Depends(find_model_as_admin)]


@router.post(
    "/{model:path}/permissions",
    response_model=PermissionList,
    summary="Share a checkpoint",
)
def create_permissions(checkpoint: AdminModelDep, body: JsonBody[CreatePermissions], session: SessionDep) -> Any:
    """Allow other projects to see this `ft:` model and to train it further. Requires an admin key, as at OpenAI."""
    rows = permissions.grant(session, checkpoint, body.project_ids)
    return list_page(rows, len(rows))


@router.get("/{model:path}/permissions", response_model=PermissionList, summary="List the permissions of a checkpoint")
def list_permissions(
    checkpoint: ModelDep,
    session: SessionDep,
    after: After = None,
    limit: Limit = 10,
    order: Annotated[Order, Query(description="Order by creation time.")] = "descending",
    project_id: Annotated[str | None, Query(description="Only the permission of this project.")] = None,
) -> Any:
    """For every key of the project that owns the model; an admin key sees every model."""
    limit = min(limit, MAX_PERMISSIONS)
    rows = permissions.page(session, checkpoint, limit + 1, after, order, project_id)
    return list_page(rows, limit)


@router.delete(
    "/{model:path}/permissions/{permission_id}", response_model=Deleted, summary="Withdraw a permission on a checkpoint"
)
def delete_permission(permission_id: str, checkpoint: AdminModelDep, session: SessionDep) -> Any:
    """Accepted jobs continue; new ones are refused. Requires an admin key."""
    permissions.withdraw(session, checkpoint, permission_id)
    return Deleted(id=permission_id, object="checkpoint.permission")
