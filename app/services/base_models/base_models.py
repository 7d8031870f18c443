"""Use cases of admins on base models. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.ids import new_id
from app.db.tables import BaseModelRegistration, BaseModelRow
from app.domain.base_models.registrations import UNFINISHED, directory_problem, option_problems, pull_problems
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest, NotFound, combine_errors
from app.services.base_models.models import refuse_alias_name
from app.system.model_registration import RegistrationOptions


def remove(session: Session, name: str) -> None:
    """Unregister a base model; its files and the adapters trained on it are kept. Raises NotFound."""
    row = session.get(BaseModelRow, name)
    if row is None:
        names = ", ".join(row.name for row in models.list_base(session)) or "none"
        raise NotFound(f"No base model is named {as_json(name)}; registered: {names}.", "model", "model_not_found")
    session.delete(row)
    session.flush()


def register(
    session: Session, allowed_directories: Sequence[str], name: str, directory: str, options: RegistrationOptions
) -> BaseModelRegistration:
    """Queue a registration for a worker with torch. Raises BadRequest with all problems."""
    problems = option_problems(name, options.learning_rate, options.source, options.revision)
    if problem := directory_problem(directory, allowed_directories):
        problems.append(problem)
    if problems:
        raise combine_errors(problems)
    return _queue(session, name, directory, options, is_pull=False)


def pull(
    session: Session, pull_directory: str | None, name: str, options: RegistrationOptions
) -> BaseModelRegistration:
    """Queue a registration for a worker with torch, which downloads the model first. Raises BadRequest with all
    problems."""
    problems = option_problems(name, options.learning_rate, options.source, options.revision)
    problems += pull_problems(pull_directory, options.source)
    if problems or pull_directory is None:
        raise combine_errors(problems)
    return _queue(session, name, pull_directory, options, is_pull=True)


def _queue(
    session: Session, name: str, directory: str, options: RegistrationOptions, is_pull: bool
) -> BaseModelRegistration:
    refuse_alias_name(session, name)
    columns = {"id": new_id("basereg", "_"), "name": name, "directory": directory, "is_pull": is_pull, **vars(options)}
    statement = upsert(BaseModelRegistration).values(columns).on_conflict_do_nothing().returning(BaseModelRegistration)
    row: BaseModelRegistration | None = session.scalar(statement)
    if row is None:
        is_unfinished = BaseModelRegistration.state.in_([state.value for state in UNFINISHED])
        other = session.scalar(select(BaseModelRegistration).where(BaseModelRegistration.name == name, is_unfinished))
        text = f"name: {as_json(name)} is being registered already"
        raise BadRequest(f"{text} ({other.id})" if other else f"{text}; try again", "name")
    return row
