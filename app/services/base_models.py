"""Use cases of models: registered base models with their aliases, and `ft:` models. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.deliveries import deliveries
from app.db.ids import new_id
from app.db.tables import BaseModelRegistration, BaseModelRow, ModelAlias, TunedModel
from app.domain.base_models.catalog import NAME, NAME_RULE
from app.domain.base_models.registrations import UNFINISHED, directory_problem, option_problems, pull_problems
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest, NotFound, NotPermitted, combine_errors
from app.system.model_registration import RegistrationOptions

OPENAI_PREFIXES = ("gpt-", "o1", "o3", "o4", "davinci", "babbage")
LISTED = "GET /v1/models, or `tunery models list`, lists those that do."
ModelRow = BaseModelRow | ModelAlias | TunedModel


def list_all(session: Session, project_id: str) -> list[ModelRow]:
    return [
        *models.list_base(session, project_id),
        *list_aliases(session, project_id),
        *models.list_usable(session, project_id),
    ]


def get(session: Session, project_id: str, model_id: str) -> ModelRow:
    model: ModelRow | None = models.get_base(session, project_id, model_id)
    model = model or models.get_usable(session, project_id, model_id)
    if model is None:
        model = next((each for each in list_aliases(session, project_id) if each.name == model_id), None)
    if model is None:
        raise model_not_found(model_id)
    return model


def delete(session: Session, project_id: str, model_id: str) -> None:
    """Delete an `ft:` model and withdraw its deliveries; its files stay. Raises NotFound, NotPermitted."""
    model = get(session, project_id, model_id)
    if isinstance(model, BaseModelRow):
        raise NotPermitted(
            f"{as_json(model_id)} is a base model; only the operator can remove it "
            f"(`tunery models remove {model_id}`).",
            "model",
        )
    if isinstance(model, ModelAlias):
        raise NotPermitted(
            f"{as_json(model_id)} is an alias of {as_json(model.base_model)}; only the operator can remove it "
            f"(`tunery models unalias {model_id}`).",
            "model",
        )
    if model.project_id != project_id:
        text = (
            f"{as_json(model_id)} belongs to another project, which shares it with yours; only its owner can delete it."
        )
        raise NotPermitted(text, "model")
    models.delete_tuned(session, model)
    deliveries.withdraw_model(session, model.id)


def resolve_alias(session: Session, project_id: str, name: str) -> BaseModelRow | None:
    """The base model of an alias; None if there is no such alias. Raises NotFound if the base model was removed."""
    alias = models.get_alias(session, name)
    if alias is None:
        return None
    base = models.get_base(session, project_id, alias.base_model)
    if base is None:
        raise NotFound(
            f"The model {as_json(name)} is an alias of {as_json(alias.base_model)}, which is not registered any more. "
            f"An operator can register it again (`tunery models add {alias.base_model} DIRECTORY`) or choose another "
            f"base model for the alias (`tunery models alias {name} BASE`). {available_models(session, project_id)}",
            "model",
            "model_not_found",
        )
    return base


def model_not_found(name: str, available: str = LISTED) -> NotFound:
    """The error for an unknown model; for the name of a model of OpenAI it mentions aliases."""
    remedy = (
        f" An operator can let this name stand for a base model (`tunery models alias {name} BASE`)."
        if name.startswith(OPENAI_PREFIXES) and NAME.fullmatch(name)
        else ""
    )
    return NotFound(f"The model {as_json(name)} does not exist. {available}{remedy}", "model", "model_not_found")


def available_models(session: Session, project_id: str) -> str:
    """A sentence with the names that a project can use as `model` of a job, except `ft:` models."""
    names = ", ".join(row.name for row in models.list_base(session, project_id)) or "none yet"
    aliases = ", ".join(f"{row.name} ({row.base_model})" for row in list_aliases(session, project_id))
    return f"Available models: {names}." + (f" Aliases: {aliases}." if aliases else "")


def set_alias(session: Session, name: str, base_model: str) -> ModelAlias:
    """Set or replace an alias, for all projects. Raises BadRequest: an invalid name, or one of a base model; no such
    base model."""
    registered = [row.name for row in models.list_base(session)]
    problems = []
    if not NAME.fullmatch(name):
        problems.append(BadRequest(f"name: {as_json(name)} is not a model name. {NAME_RULE}", "name"))
    elif name in registered:
        text = f"name: {as_json(name)} is a registered base model, which an alias may not hide; choose another name"
        problems.append(BadRequest(text, "name"))
    if base_model not in registered:
        known = ", ".join(registered) or "none"
        text = (
            f"model: no base model is named {as_json(base_model)}; registered: {known}. Register it first (`tunery "
            "models pull` or `tunery models add`), or choose another one"
        )
        problems.append(BadRequest(text, "model"))
    if problems:
        raise combine_errors(problems)
    values = {"base_model": base_model}
    statement = (
        upsert(ModelAlias).values(name=name, **values).on_conflict_do_update(index_elements=["name"], set_=values)
    )
    return session.scalars(statement.returning(ModelAlias), execution_options={"populate_existing": True}).one()


def list_aliases(session: Session, project_id: str | None = None) -> list[ModelAlias]:
    """The aliases, by name, of the base models that a project may use; without a project, all of them."""
    query = select(ModelAlias).order_by(ModelAlias.name)
    if project_id is not None:
        query = query.join(ModelAlias.base).where(models.is_offered_to(project_id))
    return list(session.scalars(query))


def remove_alias(session: Session, name: str) -> None:
    """Remove an alias; jobs that were created by it are kept. Raises NotFound."""
    alias = models.get_alias(session, name)
    if alias is None:
        known = ", ".join(row.name for row in list_aliases(session)) or "none"
        raise NotFound(f"There is no alias {as_json(name)}; aliases: {known}.", "name")
    session.delete(alias)
    session.flush()


def refuse_alias_name(session: Session, name: str) -> None:
    """Raises BadRequest if `name`, which is to become a base model, is an alias: its requests would change models."""
    alias = models.get_alias(session, name)
    if alias is not None:
        raise BadRequest(
            f"name: {as_json(name)} is an alias of {as_json(alias.base_model)}; remove the alias first "
            f"(`tunery models unalias {name}`), or choose another name",
            "name",
        )


def remove(session: Session, name: str) -> None:
    """Unregister a base model; its files and the adapters trained on it are kept. Raises NotFound."""
    row = session.get(BaseModelRow, name)
    if row is None:
        names = ", ".join(row.name for row in models.list_base(session)) or "none"
        raise NotFound(f"No base model is named {as_json(name)}; registered: {names}.", "model", "model_not_found")
    session.delete(row)
    session.flush()


def register(
    session: Session,
    allowed_directories: Sequence[str],
    pull_directory: str | None,
    name: str,
    directory: str | None,
    options: RegistrationOptions,
) -> BaseModelRegistration:
    """Queue a registration for a worker with torch, which without `directory` downloads the model first.

    Raises BadRequest with all problems.
    """
    problems = option_problems(name, options.learning_rate, options.source, options.revision)
    if directory is None:
        problems += pull_problems(pull_directory, options.source)
    elif problem := directory_problem(directory, allowed_directories):
        problems.append(problem)
    if problems:
        raise combine_errors(problems)
    refuse_alias_name(session, name)
    place = {"directory": directory or pull_directory, "is_pull": directory is None}
    columns = {"id": new_id("basereg", "_"), "name": name, **place, **vars(options)}
    statement = upsert(BaseModelRegistration).values(columns).on_conflict_do_nothing().returning(BaseModelRegistration)
    row: BaseModelRegistration | None = session.scalar(statement)
    if row is None:
        is_unfinished = BaseModelRegistration.state.in_([state.value for state in UNFINISHED])
        other = session.scalar(select(BaseModelRegistration).where(BaseModelRegistration.name == name, is_unfinished))
        text = f"name: {as_json(name)} is being registered already"
        raise BadRequest(f"{text} ({other.id})" if other else f"{text}; try again", "name")
    return row
