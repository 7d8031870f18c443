"""Use cases of admins on base models. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.db.base_models import models, registrations
from app.db.tables import BaseModelRegistration, BaseModelRow
from app.domain.base_models.registrations import directory_problem, option_problems, pull_problems
from app.domain.error_text.json_text import as_json, unquoted
from app.errors import BadRequest, NotFound, combine_errors
from app.services.base_models.models import refuse_alias_name
from app.system.model_registration import RegistrationOptions


def list_all(session: Session) -> list[BaseModelRow]:
    """Every base model with its directory, by name."""
    return models.list_base(session)


def remove(session: Session, name: str) -> None:
    """Unregister a base model; its files and the adapters trained on it are kept. Raises NotFound."""
    if not models.unregister(session, name):
        raise _unknown(session, name)


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
    row = registrations.insert(session, name=name, directory=directory, is_pull=is_pull, **vars(options))
    if row is None:
        other = registrations.unfinished(session, name)
        text = f"name: {as_json(name)} is being registered already"
        raise BadRequest(f"{text} ({other.id})" if other else f"{text}; try again", "name")
    return row


def get_registration(session: Session, registration_id: str) -> BaseModelRegistration:
    row = registrations.get(session, registration_id)
    if row is None:
        raise NotFound(f"No such registration: {unquoted(registration_id)}", "id")
    return row


def registration_page(session: Session, limit: int, after: str | None) -> list[BaseModelRegistration]:
    last = None
    if after is not None and (last := registrations.get(session, after)) is None:
        text = f"after: there is no registration {as_json(after)}; give the id of the last item of the page before"
        raise BadRequest(text, "after")
    return registrations.page(session, limit, last)


def _unknown(session: Session, name: str) -> NotFound:
    names = ", ".join(row.name for row in models.list_base(session)) or "none"
    return NotFound(f"No base model is named {as_json(name)}; registered: {names}.", "model", "model_not_found")
