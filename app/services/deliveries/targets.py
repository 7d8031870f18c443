"""Delivery targets. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, null, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import SQLColumnExpression

from app.db.deliveries import credentials as encryption
from app.db.deliveries.credentials import NoSecretKey
from app.db.deliveries.deliveries import IS_AT_TARGET, TARGET_DELETED, TARGET_DELETED_BEFORE_WITHDRAWAL
from app.db.ids import new_id
from app.db.jobs import leases
from app.db.tables import Delivery, DeliveryTarget
from app.domain.deliveries.targets import (
    DUE_STATES,
    DeliveryState,
    TargetKind,
    TargetRules,
    credential_problems,
    destination_problems,
    name_problems,
)
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest, combine_errors
from app.services import resources
from app.services.access import quotas
from app.services.resources import Page

MAX_TARGETS = 50


@dataclass(frozen=True)
class Operator:
    """What the operator allows, and the keys that encrypt credentials."""

    rules: TargetRules
    encryption_keys: Sequence[str]


def create(session: Session, operator: Operator, project_id: str, given: Mapping[str, Any]) -> DeliveryTarget:
    """Create a target of the fields of a request. Raises BadRequest with all problems, QuotaExceeded."""
    kind = TargetKind(given["destination"].kind)
    columns = _columns(operator, kind, {**given, "credentials": given["credentials"] or {}})
    remedy = "delete a target that is not needed"
    quotas.require_room(session, project_id, "max_delivery_targets", MAX_TARGETS, _count, remedy)
    statement = upsert(DeliveryTarget).values(id=new_id("target", "_"), project_id=project_id, kind=kind, **columns)
    target: DeliveryTarget | None = session.scalar(statement.on_conflict_do_nothing().returning(DeliveryTarget))
    if target is None:  # also if a concurrent request creates it
        text = f"name: this project has a target {as_json(given['name'])} already; choose another name"
        raise BadRequest(text, "name")
    return target


def get(session: Session, project_id: str, target_id: str, lock: bool = False) -> DeliveryTarget:
    """A target by its id or name. Raises NotFound."""
    has_id = DeliveryTarget.id == target_id
    query = select(DeliveryTarget.id).where(*existing(project_id), has_id | (DeliveryTarget.name == target_id))
    found = session.scalar(query.order_by(has_id.desc()).limit(1))
    return resources.get(session, DeliveryTarget, found or target_id, *existing(project_id), lock=lock)


def page(session: Session, project_id: str, page: Page) -> list[DeliveryTarget]:
    return resources.page(session, DeliveryTarget, *page, *existing(project_id))


def check_credentials(encryption_keys: Sequence[str], target: DeliveryTarget) -> DeliveryTarget:
    """Return the target; its `error` is why its credentials cannot be used, and what to do."""
    try:
        if target.credentials is not None:
            encryption.decrypt(encryption_keys, target.credentials)
    except NoSecretKey as error:
        target.error = str(error)
    return target


def change(
    session: Session, operator: Operator, project_id: str, target_id: str, given: Mapping[str, Any]
) -> DeliveryTarget:
    """Change what is given. The kind stays. Raises NotFound, and BadRequest with all problems."""
    target = get(session, project_id, target_id, lock=True)
    destination = given.get("destination")
    if destination is not None and destination.kind != target.kind:
        text = f"destination.kind: {target.name} is a {target.kind} target, which cannot become another kind; create a "
        raise BadRequest(f"{text}new one", "destination.kind")
    urls = {"urls": None}  # a server that is added gets what the others have
    if destination is not None and destination.model_dump(mode="json") | urls != target.destination | urls:
        _refuse_if_used(session, target)
    return store(session, target, _columns(operator, TargetKind(target.kind), given))


def store(session: Session, target: DeliveryTarget, columns: Mapping[str, Any]) -> DeliveryTarget:
    """Change the columns. What the target has not received is due again at once, as they may be what it needed."""
    due = update(Delivery).where(Delivery.target_id == target.id, Delivery.state.in_(sorted(DUE_STATES)))
    session.execute(due.values(next_attempt_at=func.clock_timestamp(), tries=0))
    return resources.store(session, target, **columns, updated_at=func.clock_timestamp())


def delete(session: Session, project_id: str, target_id: str) -> DeliveryTarget:
    """Mark a target as deleted, drop its credentials, and end its deliveries; what it has received stays there."""
    target = get(session, project_id, target_id, lock=True)
    target.deleted_at, target.credentials, target.is_default = func.clock_timestamp(), None, False
    ended = leases.RELEASED | {"next_attempt_at": null(), "updated_at": func.clock_timestamp()}
    of_target = update(Delivery).where(Delivery.target_id == target.id)
    is_withdrawn = Delivery.state == DeliveryState.WITHDRAWING
    error = case((is_withdrawn, TARGET_DELETED_BEFORE_WITHDRAWAL), else_=TARGET_DELETED)
    unfinished = of_target.where(Delivery.state.in_([DeliveryState.PENDING, DeliveryState.WITHDRAWING]))
    session.execute(unfinished.values(state=DeliveryState.FAILED, error=error, **ended))
    session.execute(of_target.where(Delivery.state == DeliveryState.DELIVERED).values(**ended))
    session.flush()
    return target


def resolve(session: Session, project_id: str, names: Sequence[str], param: str = "deliver_to") -> list[DeliveryTarget]:
    """The targets with these names. Raises BadRequest."""
    query = select(DeliveryTarget).where(*existing(project_id)).order_by(DeliveryTarget.seq)
    targets = {target.name: target for target in session.scalars(query)}
    if unknown := [name for name in names if name not in targets]:
        listed = ", ".join(targets) or "none yet"
        text = f"{param}: there is no delivery target {', '.join(map(as_json, unknown))}; there are: {listed}"
        raise BadRequest(text, param)
    return [targets[name] for name in dict.fromkeys(names)]


def _refuse_if_used(session: Session, target: DeliveryTarget) -> None:
    """Raises BadRequest if the target has adapters, which could not be withdrawn from its earlier address."""
    if count := session.scalar(select(func.count()).where(Delivery.target_id == target.id, IS_AT_TARGET)):
        text = f"destination: {target.name} has {count} adapters; withdraw them first, or create a new target"
        raise BadRequest(text, "destination")


def existing(project_id: str | SQLColumnExpression[str]) -> tuple[ColumnElement[bool], ...]:
    """The conditions of the targets of a project."""
    return DeliveryTarget.project_id == project_id, DeliveryTarget.deleted_at.is_(None)


def _count(session: Session, project_id: str) -> int:
    return resources.count(session, DeliveryTarget, *existing(project_id))


def _columns(operator: Operator, kind: TargetKind, given: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the given fields; only `served_model` may become null. Raises BadRequest with all problems."""
    columns = {name: value for name, value in given.items() if value is not None or name == "served_model"}
    checks: dict[str, Callable[[Any], list[BadRequest]]] = {
        "name": name_problems,
        "destination": lambda destination: destination_problems(destination, operator.rules),
        "credentials": lambda credentials: credential_problems(kind, credentials),
    }
    if problems := [problem for name, check in checks.items() if name in columns for problem in check(columns[name])]:
        raise combine_errors(problems)
    if "default" in columns:
        columns["is_default"] = columns.pop("default")
    if "destination" in columns:
        columns["destination"] = columns["destination"].model_dump(mode="json")
    if "credentials" in columns:
        columns |= _encrypted(operator, columns["credentials"])
    return columns


def _encrypted(operator: Operator, credentials: Mapping[str, str]) -> dict[str, Any]:
    try:
        token = encryption.encrypt(operator.encryption_keys, credentials) if credentials else None
    except NoSecretKey as error:
        raise BadRequest(f"credentials: {error}", "credentials") from error
    return {"credentials": token, "credential_names": sorted(credentials)}
