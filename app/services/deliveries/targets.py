"""Use cases of delivery targets. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.db.deliveries import credentials as encryption
from app.db.deliveries import targets
from app.db.deliveries.credentials import NoSecretKey
from app.db.tables import DeliveryTarget
from app.domain.deliveries.targets import (
    Destination,
    TargetKind,
    TargetRules,
    check_name,
    credential_problems,
    destination_problems,
)
from app.domain.error_text.json_text import as_json, unquoted
from app.errors import BadRequest, NotFound, combine_errors
from app.services.access import quotas

MAX_TARGETS = 50


@dataclass(frozen=True)
class Operator:
    """What the operator allows, and the keys that encrypt credentials."""

    rules: TargetRules
    encryption_keys: Sequence[str]


@dataclass(frozen=True)
class TargetChanges:
    """What a request gives; absent names are not in `given`."""

    given: Mapping[str, Any]
    destination: Destination | None = None
    credentials: Mapping[str, str] | None = None


def create(session: Session, operator: Operator, project_id: str, name: str, changes: TargetChanges) -> DeliveryTarget:
    """Create a target. Raises BadRequest with all problems, QuotaExceeded."""
    assert changes.destination is not None, "the shape of a create body requires it"
    kind = TargetKind(changes.destination.kind)
    credentials = changes.credentials or {}
    _check(operator, kind, changes.destination, credentials, name)
    remedy = "delete a target that is not needed"
    quotas.require_room(session, project_id, "max_delivery_targets", MAX_TARGETS, targets.count, remedy)
    target = targets.insert(
        session,
        project_id,
        name=name,
        kind=kind,
        destination=changes.destination.model_dump(mode="json"),
        served_model=changes.given.get("served_model"),
        is_default=bool(changes.given.get("default")),
        **_encrypted(operator, credentials),
    )
    if target is None:
        raise BadRequest(f"name: this project has a target {as_json(name)} already; choose another name", "name")
    return target


def get(session: Session, project_id: str, target_id: str, lock: bool = False) -> DeliveryTarget:
    """A target by its id or name. Raises NotFound."""
    target = targets.get(session, project_id, target_id, lock)
    if target is None:
        raise NotFound(f"No such delivery target: {unquoted(target_id)}", "id")
    return target


def problem(encryption_keys: Sequence[str], target: DeliveryTarget) -> str | None:
    """Why the target's credentials cannot be used, and what to do; None if they can."""
    try:
        if target.credentials is not None:
            encryption.decrypt(encryption_keys, target.credentials)
    except NoSecretKey as error:
        return str(error)
    return None


def page(session: Session, project_id: str, limit: int, after: str | None) -> list[DeliveryTarget]:
    last = targets.get(session, project_id, after) if after is not None else None
    if after is not None and last is None:
        text = (
            f"after: there is no delivery target {as_json(after)} here; give the id of the last item of the page before"
        )
        raise BadRequest(text, "after")
    return targets.page(session, project_id, limit, last)


def change(
    session: Session, operator: Operator, project_id: str, target_id: str, changes: TargetChanges
) -> DeliveryTarget:
    """Change what is given. The kind stays. Raises NotFound, and BadRequest with all problems."""
    target = get(session, project_id, target_id, lock=True)
    kind = TargetKind(target.kind)
    if changes.destination is not None and changes.destination.kind != kind:
        text = f"destination.kind: {target.name} is a {kind} target, which cannot become another kind; create a new one"
        raise BadRequest(text, "destination.kind")
    _check(operator, kind, changes.destination, changes.credentials)
    values: dict[str, Any] = {}
    if changes.destination is not None:
        values["destination"] = changes.destination.model_dump(mode="json")
    if changes.credentials is not None:
        values |= _encrypted(operator, changes.credentials)
    if "served_model" in changes.given:
        values["served_model"] = changes.given["served_model"]
    if changes.given.get("default") is not None:
        values["is_default"] = changes.given["default"]
    return targets.change(session, target, **values)


def delete(session: Session, project_id: str, target_id: str) -> DeliveryTarget:
    target = get(session, project_id, target_id, lock=True)
    targets.delete(session, target)
    return target


def resolve_names(
    session: Session, project_id: str, names: Sequence[str] | None, param: str = "deliver_to"
) -> list[str]:
    """The targets of a job: those named, or those of its project that are a default. Raises BadRequest."""
    if names is None:
        return targets.names(session, project_id, only_defaults=True)
    unknown = [name for name in names if name not in targets.by_names(session, project_id, names)]
    if unknown:
        existing = ", ".join(targets.names(session, project_id)) or "none yet"
        text = f"{param}: there is no delivery target {', '.join(map(as_json, unknown))}; there are: {existing}"
        raise BadRequest(text, param)
    return list(dict.fromkeys(names))


def _check(
    operator: Operator,
    kind: TargetKind,
    destination: Destination | None,
    credentials: Mapping[str, str] | None,
    name: str | None = None,
) -> None:
    """Raises BadRequest with all problems."""
    problems: list[BadRequest] = []
    try:
        if name is not None:
            check_name(name)
    except BadRequest as problem:
        problems.append(problem)
    problems += destination_problems(destination, operator.rules) if destination is not None else []
    problems += credential_problems(kind, credentials) if credentials is not None else []
    if problems:
        raise combine_errors(problems)


def _encrypted(operator: Operator, credentials: Mapping[str, str]) -> dict[str, Any]:
    if not credentials:
        return {"credentials": None, "credential_names": []}
    try:
        token = encryption.encrypt(operator.encryption_keys, credentials)
    except NoSecretKey as error:
        raise BadRequest(f"credentials: {error}", "credentials") from error
    return {"credentials": token, "credential_names": sorted(credentials)}
