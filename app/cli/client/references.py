"""Resolution of ids (a full id, a unique prefix of one, or @last for the newest; a project by its name, too), and the
paths of objects.

`app.cli.options` resolves each parameter that is annotated with `JOB`, `RESULT`, `FILE` or `PROJECT` before the command
runs.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import quote

import typer

from app.cli.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json

ID_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
LAST = "@last"
FULL_ID = re.compile(r"(ftjob|file)-[0-9a-f]{24}")
MAX_CANDIDATES = 5  # listed in the error about an ambiguous prefix


class ResourceType(NamedTuple):
    noun: str
    prefix: str
    path: str
    page_size: int
    last_status: str | None = None  # of those that @last refers to; None: of any


JOB = ResourceType("job", "ftjob-", "fine_tuning/jobs", 100)
RESULT = JOB._replace(last_status="succeeded")
FILE = ResourceType("file", "file-", "files", 1000)
PROJECT = ResourceType("project", "proj_", "organization/projects", 100)  # by its name or its full id

REFERENCE_FORMS = "an id, a unique prefix of one, or @last"
JobId = Annotated[str, typer.Argument(help=f"Job: {REFERENCE_FORMS}.", metavar="JOB"), JOB]
JobWithResult = Annotated[str, typer.Argument(help=f"Job: {REFERENCE_FORMS} with a result.", metavar="JOB"), RESULT]
FileId = Annotated[str, typer.Argument(help=f"File: {REFERENCE_FORMS}.", metavar="FILE"), FILE]
FileIds = Annotated[list[str], typer.Argument(help=f"Files, each by {REFERENCE_FORMS}.", metavar="FILE..."), FILE]
CheckpointId = Annotated[str | None, typer.Option(help="Checkpoint id. Default: the final adapter.")]
ProjectId = Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project."), PROJECT]


def job_path(*parts: str) -> str:
    """The API path of the jobs, of one, or below it. Raises NotFoundError for text that cannot be an id."""
    return _path(JOB, *parts)


def file_path(*parts: str) -> str:
    """The API path of the files, of one, or below it. Raises NotFoundError for text that cannot be an id."""
    return _path(FILE, *parts)


def named_path(collection: str, *names: str) -> str:
    """The API path of objects, or of one whose name may contain any characters, such as a model."""
    return "/".join((collection, *(quote(name, safe="") for name in names)))


def resolve_model(client: Client, text: str) -> str:
    """The model of the job that `text` refers to. Raises NotFoundError if the job has none."""
    job = client.get(job_path(resolve_id(client, RESULT, text)))
    if not job["fine_tuned_model"]:
        raise NotFoundError(f"{job['id']} is {job['status']} and has no model.")
    return str(job["fine_tuned_model"])


def resolve_id(client: Client, resource: ResourceType, text: str, **filters: Any) -> str:
    """The full id that `text` refers to. Raises NotFoundError if none matches, UsageError if several do."""
    if resource is PROJECT:
        return str(find_project(client, text)["id"])
    if text == LAST:
        status = {"status": resource.last_status} if resource.last_status else {}
        newest = client.get(resource.path, limit=1, **filters, **status)["data"]
        if not newest:
            which = " with a result" if status else ""
            raise NotFoundError(f"{LAST} refers to the newest {resource.noun}{which}, but there is none yet.")
        return str(newest[0]["id"])
    if FULL_ID.fullmatch(text) or not ID_PATTERN.fullmatch(text):
        return text  # `job_path` and `file_path` reject text that cannot be an id
    prefix = text if text.startswith(resource.prefix) else resource.prefix + text
    ids = (str(item["id"]) for item in client.pages(resource.path, resource.page_size, **filters))
    matches = list(islice((item_id for item_id in ids if item_id.startswith(prefix)), MAX_CANDIDATES + 1))
    if not matches:
        raise NotFoundError(f"No {resource.noun} id starts with {text!r}; see `tunery {resource.noun}s list`.")
    if len(matches) > 1:
        more = " and others" if len(matches) > MAX_CANDIDATES else ""
        candidates = ", ".join(matches[:MAX_CANDIDATES])
        raise UsageError(f"{text!r} matches several {resource.noun}s: {candidates}{more}. Give a longer prefix.")
    return matches[0]


def find_project(client: Client, text: str) -> Json:
    """The project with this name, or else with this id. Raises NotFoundError."""
    every = list(client.pages(PROJECT.path, include_archived=True))
    for key in ("name", "id"):
        for project in every:
            if project[key] == text:
                return project
    raise NotFoundError(f"No such project: {text!r}; see `tunery projects list`.")


def _path(resource: ResourceType, *parts: str) -> str:
    for part in parts:
        if not ID_PATTERN.fullmatch(part):
            raise NotFoundError(f"No such {resource.noun}: {part!r}; see `tunery {resource.noun}s list`.")
    return "/".join((resource.path, *parts))
