"""Registrations of base models by HTTP: what a request may say, and the states."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from enum import StrEnum

from app.domain.base_models.catalog import NAME, NAME_RULE
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest

SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
MAX_NOTES = 20


class RegistrationState(StrEnum):
    """queued -> running -> succeeded | failed; running -> queued after a lost attempt."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


UNFINISHED = (RegistrationState.QUEUED, RegistrationState.RUNNING)
FINISHED = (RegistrationState.SUCCEEDED, RegistrationState.FAILED)


class RegistrationErrorCode(StrEnum):
    """`error.code` of a failed registration."""

    REFUSED_MODEL = "refused_model"
    DIRECTORY_NOT_ALLOWED = "directory_not_allowed"
    HUB_UNAVAILABLE = "hub_unavailable"
    WORKER_LOST = "worker_lost"
    SERVER_ERROR = "server_error"


def option_problems(
    name: str, learning_rate: float | None = None, source: str | None = None, revision: str | None = None
) -> list[BadRequest]:
    """Every problem of the name and the options of a base model."""
    problems = []
    if not NAME.fullmatch(name):
        text = f"name: {as_json(name)} is not a model name. {NAME_RULE.removesuffix('.')}"
        problems.append(BadRequest(text, "name"))
    if learning_rate is not None and not 0 < learning_rate < 1:
        text = f"learning_rate: {learning_rate:g} is not between 0 and 1; usual for LoRA: 1e-4 to 2e-3"
        problems.append(BadRequest(text, "learning_rate"))
    if source is not None and not SOURCE.fullmatch(source):
        text = f"source: {as_json(source)} is not a hub's id; it has the form organization/name"
        problems.append(BadRequest(text, "source"))
    if revision is not None and source is None:
        problems.append(BadRequest(f"revision: {as_json(revision)} needs a source", "revision"))
    elif revision is not None and not REVISION.fullmatch(revision):
        text = f"revision: {as_json(revision)} is not a commit or tag: letters, digits and ._/- are allowed"
        problems.append(BadRequest(text, "revision"))
    return problems


def directory_problem(directory: str, allowed: Sequence[str]) -> BadRequest | None:
    """Why a directory of a request is refused by its text alone; the worker looks where symbolic links lead."""
    if not allowed:
        text = (
            "directory: this server registers no directories over HTTP; the operator sets TUNERY_BASE_MODEL_DIRECTORIES"
        )
        return BadRequest(text, "directory")
    if posixpath.normpath(directory) == directory and any(is_inside(directory, root) for root in allowed):
        return None
    text = (
        f"directory: {as_json(directory)} is not a directory inside {', '.join(allowed)}; give an absolute path "
        'without "." and ".."'
    )
    return BadRequest(text, "directory")


def pull_problems(pull_directory: str | None, source: str | None) -> list[BadRequest]:
    """Every reason to refuse a request that names no directory, which is one to download `source` from its hub."""
    problems = []
    if source is None:
        text = "source: give the id of a model on its hub, as organization/name, or the `directory` of its files"
        problems.append(BadRequest(text, "source"))
    if pull_directory is None:
        text = (
            "directory: this server downloads no models over HTTP; the operator sets TUNERY_BASE_MODEL_PULL_DIRECTORY. "
            "Or give the directory of the model's files"
        )
        problems.append(BadRequest(text, "directory"))
    return problems


def is_inside(path: str, root: str) -> bool:
    """Whether a normalized absolute path is below the root."""
    return path.startswith(root.rstrip("/") + "/")
