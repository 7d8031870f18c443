"""Resolution of ids (a full id, a unique prefix of one, a name, or @last for the newest; a checkpoint by its step,
too), their completion by the shell, and the paths of objects.

`app.cli.options` resolves each parameter that is annotated with `JOB`, `RESULT`, `FILE`, `PROJECT` or `CHECKPOINT`
before the command runs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
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
MAX_CANDIDATES = 5  # listed in the error about an ambiguous prefix or name
MAX_CHECKPOINTS = 100
COMPLETION_ITEMS = 100  # the newest ones
WORD = re.compile(r"[^\s'\"\\]+")  # what a shell inserts as one argument


class ResourceType(NamedTuple):
    noun: str
    prefix: str
    path: str
    page_size: int | None  # None: the list has one page
    name: str  # the key of the name
    last_status: str | None = None  # of those that @last refers to; None: of any


JOB = ResourceType("job", "ftjob-", "fine_tuning/jobs", 100, "user_provided_suffix")
RESULT = JOB._replace(last_status="succeeded")
FILE = ResourceType("file", "file-", "files", 1000, "filename")
MODEL = ResourceType("model", "", "models", None, "id")
PROJECT = ResourceType("project", "proj_", "organization/projects", 100, "name")  # by its name or its full id
CHECKPOINT = ResourceType("checkpoint", "ftckpt_", "checkpoints", 100, "step_number")  # of the parameter `job_id`


def completion(resource: ResourceType) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    """The function that completes an id or a name for the shell: nothing where the service does not answer."""

    def complete(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        from app.cli.client.http import Client  # slow imports, which `--help` does not need
        from app.cli.client.service_discovery import find_service

        try:
            address = find_service(*map(ctx.params.get, ("base_url", "data_dir", "profile")))
            with contextlib.closing(Client(address)) as client:
                items = client.get(resource.path, limit=resource.page_size and COMPLETION_ITEMS)["data"]
        except Exception:  # a message would appear in the middle of the line that is typed
            return []
        texts = {str(item["id"]): str(item[resource.name] or "") for item in items}
        texts |= {name: each for each, name in texts.items()}
        return [(text, about) for text, about in texts.items() if text.startswith(incomplete) and WORD.fullmatch(text)]

    return complete


REFERENCE_FORMS = "an id, a unique prefix of one, a name, or @last"
_JOB, _FILE, _PROJECT = map(completion, (JOB, FILE, PROJECT))
JobId = Annotated[str, typer.Argument(help=f"Job: {REFERENCE_FORMS}.", metavar="JOB", autocompletion=_JOB), JOB]
JobWithResult = Annotated[
    str,
    typer.Argument(help=f"Job: {REFERENCE_FORMS} with a result.", metavar="JOB", autocompletion=_JOB),
    RESULT,
]
FileId = Annotated[str, typer.Argument(help=f"File: {REFERENCE_FORMS}.", metavar="FILE", autocompletion=_FILE), FILE]
FileIds = Annotated[
    list[str],
    typer.Argument(help=f"Files, each by {REFERENCE_FORMS}.", metavar="FILE...", autocompletion=_FILE),
    FILE,
]
CheckpointId = Annotated[
    str | None,
    typer.Option(help="Step or id of a checkpoint; see `tunery jobs checkpoints`. Default: the final adapter."),
    CHECKPOINT,
]
ProjectId = Annotated[
    str, typer.Argument(metavar="PROJECT", help="Name or id of the project.", autocompletion=_PROJECT), PROJECT
]


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
    if FULL_ID.fullmatch(text) or not text:
        return text  # `job_path` and `file_path` reject text that cannot be an id
    prefix = text if text.startswith(resource.prefix) else resource.prefix + text
    items = client.pages(resource.path, resource.page_size, **filters)
    found = (
        item
        for item in items
        if str(item["id"]).startswith(prefix)
        or text in (item[resource.name], (item.get("evaluation") or {}).get("id"))  # of a job's newest evaluation
    )
    matches = list(islice(found, MAX_CANDIDATES + 1))
    if not matches:
        raise NotFoundError(
            f"No {resource.noun} has the name {text!r} or an id that starts so; see `tunery {resource.noun}s list`."
        )
    if len(matches) > 1:
        more = " and others" if len(matches) > MAX_CANDIDATES else ""
        candidates = ", ".join(_candidate(item, resource) for item in matches[:MAX_CANDIDATES])
        raise UsageError(f"{text!r} matches several {resource.noun}s: {candidates}{more}. Give an id or more of it.")
    return str(matches[0]["id"])


def resolve_file(client: Client, text: str, **filters: Any) -> str:
    """The id of a stored file. Raises UsageError for text that is neither one's id or name nor looks like an id."""
    try:
        return resolve_id(client, FILE, text, **filters)
    except NotFoundError:
        if text == LAST or text.startswith(FILE.prefix):
            raise
        raise UsageError(
            f"{text} is neither an existing path, nor the id or name of a stored file, nor {LAST}."
        ) from None


def find_checkpoint(client: Client, job_id: str, text: str) -> Json:
    """The checkpoint of the job with this step, model, id or unique prefix of an id. Raises NotFoundError."""
    rows = list(islice(client.pages(job_path(job_id, CHECKPOINT.path), CHECKPOINT.page_size), MAX_CHECKPOINTS))
    matches = [row for row in rows if text in (str(row["step_number"]), row["fine_tuned_model_checkpoint"])]
    if not matches and text.startswith(CHECKPOINT.prefix):
        matches = [row for row in rows if row["id"].startswith(text)]
    if len(matches) == 1:
        return matches[0]
    kept = ", ".join(_candidate(row, CHECKPOINT) for row in matches or rows) or "none"
    raise NotFoundError(f"{job_id} has no single checkpoint {text!r}; kept, with their steps: {kept}.")


def find_project(client: Client, text: str) -> Json:
    """The project with this name, or else with this id. Raises NotFoundError."""
    every = list(client.pages(PROJECT.path, include_archived=True))
    for key in ("name", "id"):
        for project in every:
            if project[key] == text:
                return project
    raise NotFoundError(f"No such project: {text!r}; see `tunery projects list`.")


def _candidate(item: Json, resource: ResourceType) -> str:
    name = item[resource.name]
    return f"{item['id']} ({name})" if name not in (None, "") else str(item["id"])


def _path(resource: ResourceType, *parts: str) -> str:
    for part in parts:
        if not ID_PATTERN.fullmatch(part):
            raise NotFoundError(f"No such {resource.noun}: {part!r}; see `tunery {resource.noun}s list`.")
    return "/".join((resource.path, *parts))
