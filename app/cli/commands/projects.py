"""`tunery projects`, `retention` and `allow-urgent`: projects, their limits and their rules, for administrators."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import PROJECT, ProjectId
from app.cli.errors import UsageError
from app.cli.options import given, option_parameter, with_body, with_client, with_parameters
from app.cli.output.console import size_text, time_text
from app.cli.output.results import Columns, Result, line, table
from app.cli.resource import named

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json

projects = typer.Typer(no_args_is_help=True, help="Projects and their limits, for administrators.")
commands = typer.Typer()  # `retention` and `allow-urgent`

BYTES = re.compile(r"\s*\d*\.?\d+\s*[A-Za-z]*\s*")
NONE = "none"  # the value of an option that removes a limit or a rule
FACTORS = {"max_gpu_seconds_per_month": 3600}  # of the numbers that options take
RULES = ("files", "checkpoints", "logs", "events", "exports")

MaxBytes = Annotated[str | None, typer.Option(help="Maximum stored bytes, such as 500GB, or none.", metavar="SIZE")]
MaxQueued = Annotated[str | None, typer.Option(help="Maximum number of queued jobs, or none.", metavar="N")]
MaxRunning = Annotated[str | None, typer.Option(help="Maximum number of running jobs, or none.", metavar="N")]
MaxGpuHours = Annotated[str | None, typer.Option(help="Maximum GPU-hours per month (UTC), or none.", metavar="HOURS")]
MaxRequests = Annotated[
    str | None, typer.Option(help="Maximum requests per second and API process, or none.", metavar="N")
]
Weight = Annotated[
    float | None, typer.Option(help="Weight of the project when several projects have queued jobs. Default: 1.")
]
Days = Annotated[str | None, typer.Option(metavar="DAYS", help="Delete them after this many days, or none.")]


def _settings(
    max_stored_bytes: MaxBytes = None,
    max_queued_jobs: MaxQueued = None,
    max_running_jobs: MaxRunning = None,
    max_gpu_hours: MaxGpuHours = None,
    max_requests_per_second: MaxRequests = None,
    share_weight: Weight = None,
) -> dict[str, Any]:
    """The limits and the weight as the API takes them."""
    from app.domain.jobs.spec import SHARE_WEIGHT

    if share_weight is not None and share_weight not in SHARE_WEIGHT:
        raise UsageError(f"--share-weight {share_weight:g} is not a number {SHARE_WEIGHT}.")
    texts = given(
        max_stored_bytes=max_stored_bytes,
        max_queued_jobs=max_queued_jobs,
        max_running_jobs=max_running_jobs,
        max_gpu_seconds_per_month=max_gpu_hours,
        max_requests_per_second=max_requests_per_second,
    )
    limits = {name: _limit(name, text) for name, text in texts.items()}
    return given(limits=limits or None, share_weight=share_weight)


@projects.command("create")
@with_client
@with_body(_settings)
def create_project(
    client: "Client",
    name: Annotated[str, typer.Argument(help="Name of the project.")],
    body: dict[str, Any],
) -> Result:
    """Create a project. Create its keys with `tunery keys create --project NAME`."""
    return _project(client.post(PROJECT.path, {"name": name} | body))


@projects.command("list")
@with_client
def list_projects(
    client: "Client",
    archived: Annotated[bool, typer.Option("--archived", help="Include archived projects.")] = False,
) -> Result:
    """List the projects with their usage, newest first."""
    rows = client.pages(PROJECT.path, include_archived=archived, include_usage=True)
    columns: Columns = {
        "id": "id",
        "name": "name",
        "stored": ("usage", lambda used: size_text(used["stored_bytes"])),
        "jobs": ("usage", _jobs_text),
        "GPU-hours": ("usage", lambda used: _hours(used["gpu_seconds_this_month"])),
        "limits": ("limits", _limits_text),
        "archived": ("archived_at", time_text),
    }
    return table(rows, columns, "No projects. Create one with `tunery projects create NAME`.")


@projects.command("set")
@with_client
@with_body(_settings)
def set_project(
    client: "Client",
    project: ProjectId,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    body: Any = None,
) -> Result:
    """Change the name, limits or weight of a project. Omitted options are not changed."""
    return _project(client.post(f"{PROJECT.path}/{project}", given(name=name) | body))


@projects.command("archive")
@with_client
def archive_project(
    client: "Client",
    project: ProjectId,
    cancel_jobs: Annotated[
        bool, typer.Option("--cancel-jobs", help="Cancel the unfinished jobs of the project.")
    ] = False,
) -> Result:
    """Archive a project: its keys are rejected until it is unarchived. Files and results are kept."""
    archived = client.post(f"{PROJECT.path}/{project}/archive", {"cancel_jobs": cancel_jobs})
    return line(archived, f"{archived['name']} is archived")


@commands.command("allow-urgent")
@with_client
def allow_urgent(
    client: "Client",
    project: ProjectId,
    forbid: Annotated[bool, typer.Option("--forbid", help="Revoke the permission.")] = False,
) -> Result:
    """Allow a project to create `urgent` jobs, which start before all others. For administrators."""
    changed = client.post(f"{PROJECT.path}/{project}", {"may_be_urgent": not forbid})
    return line(changed, f"{changed['name']}: urgent jobs are {'refused' if forbid else 'allowed'}")


def _rules(**texts: str | None) -> dict[str, int | None]:
    return {kind: _days(kind, text) for kind, text in given(**texts).items()}


@commands.command("retention")
@with_client
@with_body(with_parameters(_rules, [option_parameter(kind, Days) for kind in RULES]))
def retention(
    client: "Client",
    project: Annotated[str | None, typer.Argument(metavar="PROJECT", help="Name or id. Default: all."), PROJECT] = None,
    body: Any = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what the rules delete now.")] = False,
) -> Result:
    """Show or set the retention rules of projects, for administrators. Without a rule nothing is deleted for its age.

    Files are uploaded files; checkpoints, logs and events are those of ended jobs, never a job's result or its last
    event. With --dry-run and new rules, the rules are shown with their effect and not stored.
    """
    if body and project is None:
        raise UsageError("Name the project whose rules to set: tunery retention PROJECT --files 90")
    if body:
        found = client.post(f"{PROJECT.path}/{project}/retention_rules", {"rules": body, "dry_run": dry_run})
    else:
        found = client.get("organization/retention_rules", include_due=dry_run, project_id=project)
    effect: Columns = {
        "deletes now": ("due", lambda due: str(due["count"])),
        "size": ("due", lambda due: size_text(due["size_bytes"])),
    }
    columns: Columns = {"project": "project", "kind": "kind", "days": "days", **(effect if dry_run else {})}
    note = "Nothing was stored. Repeat the command without --dry-run to set the rules." if dry_run and body else ""
    return table(found["data"], columns, "No retention rules: nothing is deleted for its age.", note)


def _limit(name: str, text: str) -> int | None:
    """`500GB`, `12`, `1.5`, or `none`."""
    from pydantic import ByteSize, TypeAdapter

    if text.strip().lower() == NONE:
        return None
    try:
        if name == "max_stored_bytes":
            if not BYTES.fullmatch(text):  # pydantic ignores what follows the unit
                raise ValueError
            number = int(TypeAdapter(ByteSize).validate_python(text))
        else:
            number = round(float(text) * FACTORS.get(name, 1))
    except (ValueError, OverflowError):
        number = -1
    if not 0 <= number < 1 << 63:
        raise UsageError(f"{name}: {text!r} is not a limit. Give a number, for bytes one such as 500GB, or {NONE}.")
    return number


def _project(project: "Json") -> Result:
    limits = _limits_text(project["limits"]) or "no limits"
    return line(project, project["id"], f"{project['name']}: {limits}, share weight {project['share_weight']:g}")


def _limits_text(limits: "Json") -> str:
    return " ".join(f"{limit}={value}" for limit, value in limits.items() if value is not None)


def _jobs_text(usage: "Json") -> str:
    return f"{usage['queued_jobs']} queued, {usage['running_jobs']} running"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f}"


def _days(kind: str, text: str) -> int | None:
    try:
        return None if text.strip().lower() == NONE else int(text)
    except ValueError:
        raise UsageError(f"--{kind}: {text!r} is not a number of days. Give a number, or {NONE}.") from None


resource = named(projects, PROJECT.path, ProjectId)
resource.add_show(
    "Show the limits and the usage of a project.",
    {
        "id": "id",
        "name": "name",
        "limits": ("limits", _limits_text),
        "share weight": ("share_weight", "{:g}".format),
        "stored": ("usage", lambda used: size_text(used["stored_bytes"])),
        "jobs": ("usage", _jobs_text),
        "GPU-hours": (
            "usage",
            lambda used: (
                f"{_hours(used['gpu_seconds_this_month'])} this month, {_hours(used['held_gpu_seconds'])} reserved"
            ),
        ),
        "archived": ("archived_at", time_text),
    },
)
resource.add_change(
    "unarchive",
    "Unarchive a project. Its keys are valid again unless they were revoked or have expired.",
    lambda active: f"{active['name']} is active",
    action="unarchive",
)
