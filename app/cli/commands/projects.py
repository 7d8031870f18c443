"""`tunery projects`: who shares this service, and how much of it. The operator's business, straight on the database."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import Missing, UsageError
from app.cli.options import AsJson, with_database
from app.cli.output.console import print_fields, print_json, print_line, print_note, print_table, size_text

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from app.cli.client.database import Database
    from app.db.tables import Project

commands = typer.Typer(no_args_is_help=True, help="Projects and their limits.")

NO_LIMIT = "none"
ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", help="Its name or its id.")]
MaxBytes = Annotated[str | None, typer.Option(help="Bytes stored, such as 500GB; none: no limit.", metavar="SIZE")]
MaxQueued = Annotated[str | None, typer.Option(help="Jobs that wait; none: no limit.", metavar="N")]
MaxRunning = Annotated[str | None, typer.Option(help="Jobs that run at once; none: no limit.", metavar="N")]
MaxGpuHours = Annotated[str | None, typer.Option(help="GPU-hours a month (UTC); none: no limit.", metavar="HOURS")]
MaxRequests = Annotated[str | None, typer.Option(help="Requests a second, in each API process.", metavar="N")]
Weight = Annotated[float | None, typer.Option(help="Its part of the GPUs when several projects wait; 1 is usual.")]

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@commands.command("create")
@with_database
def create(
    database: "Database",
    name: Annotated[str, typer.Argument(help="What people call it.")],
    max_stored_bytes: MaxBytes = None,
    max_queued_jobs: MaxQueued = None,
    max_running_jobs: MaxRunning = None,
    max_gpu_hours: MaxGpuHours = None,
    max_requests_per_second: MaxRequests = None,
    share_weight: Weight = None,
    as_json: AsJson = False,
) -> None:
    """Create a project. `tunery keys create --project NAME` makes keys to it."""
    from app.services.access import projects

    settings = _settings(
        max_stored_bytes, max_queued_jobs, max_running_jobs, max_gpu_hours, max_requests_per_second, share_weight
    )
    with database.transaction() as session:
        project = projects.create(session, name, settings)
    _print(project, as_json)


@commands.command("list")
@with_database
def list_projects(
    database: "Database",
    archived: Annotated[bool, typer.Option("--archived", help="Also those that are archived.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the projects, newest first."""
    from app.db.access import projects

    with database.transaction() as session:
        found = projects.page(session, limit=10_000, with_archived=archived)
    if as_json:
        print_json([_as_json(project) for project in found])
        return
    rows = [[project.id, project.name, _limits(project), _time(project.archived_at)] for project in found]
    print_table(["id", "name", "limits", "archived"], rows, "No projects. `tunery projects create NAME` makes one.")


@commands.command("show")
@with_database
def show(database: "Database", project: ProjectName, as_json: AsJson = False) -> None:
    """Show a project's limits, and what it uses of them."""
    from app.db.access import usage

    with database.transaction() as session:
        found = find(session, project)
        used = usage.project_usage(session, found.id)
    if as_json:
        print_json(_as_json(found) | {"usage": vars(used)})
        return
    hours = f"{used.gpu_seconds_this_month / 3600:.2f} this month, {used.held_gpu_seconds / 3600:.2f} held"
    print_fields(
        [
            ("id", found.id),
            ("name", found.name),
            ("limits", _limits(found)),
            ("share weight", f"{found.share_weight:g}"),
            ("stored", size_text(used.stored_bytes)),
            ("jobs", f"{used.queued_jobs} waiting, {used.running_jobs} running"),
            ("GPU-hours", hours),
            ("archived", _time(found.archived_at)),
        ]
    )


@commands.command("set")
@with_database
def set_project(
    database: "Database",
    project: ProjectName,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    max_stored_bytes: MaxBytes = None,
    max_queued_jobs: MaxQueued = None,
    max_running_jobs: MaxRunning = None,
    max_gpu_hours: MaxGpuHours = None,
    max_requests_per_second: MaxRequests = None,
    share_weight: Weight = None,
    as_json: AsJson = False,
) -> None:
    """Change a project's name, limits or weight. What is not given stays."""
    from app.services.access import projects

    settings = _settings(
        max_stored_bytes, max_queued_jobs, max_running_jobs, max_gpu_hours, max_requests_per_second, share_weight
    )
    with database.transaction() as session:
        changed = projects.modify(session, find(session, project).id, name, settings)
    _print(changed, as_json)


@commands.command("archive")
@with_database
def archive(
    database: "Database",
    project: ProjectName,
    cancel_jobs: Annotated[bool, typer.Option("--cancel-jobs", help="Cancel what has not ended.")] = False,
) -> None:
    """Close a project: its keys open nothing any more, until it is unarchived. Files and results stay."""
    from app.services.access import projects

    with database.transaction() as session:
        closed = projects.archive(session, find(session, project).id, None, cancel_jobs)
    print_line(f"{closed.name} is archived")


@commands.command("unarchive")
@with_database
def unarchive(database: "Database", project: ProjectName) -> None:
    """Open an archived project again, with its keys that were neither revoked nor have expired."""
    from app.services.access import projects

    with database.transaction() as session:
        opened = projects.unarchive(session, find(session, project).id)
    print_line(f"{opened.name} is open")


def find(session: "Session", project: str) -> "Project":
    """By name or id. Raises Missing."""
    from app.db.access import projects

    found = projects.get_by_name(session, project) or projects.get(session, project)
    if found is None:
        raise Missing(f"There is no project {project!r}; `tunery projects list` has them.")
    return found


def _settings(
    max_bytes: str | None,
    max_queued: str | None,
    max_running: str | None,
    max_gpu_hours: str | None,
    max_requests: str | None,
    weight: float | None,
) -> dict[str, int | float | None]:
    given: dict[str, int | float | None] = {}
    for name, text, factors in (
        ("max_stored_bytes", max_bytes, UNITS),
        ("max_queued_jobs", max_queued, {"": 1}),
        ("max_running_jobs", max_running, {"": 1}),
        ("max_gpu_seconds_per_month", max_gpu_hours, {"": 3600}),
        ("max_requests_per_second", max_requests, {"": 1}),
    ):
        if text is not None:
            given[name] = _number(name, text, factors)
    if given.get("max_requests_per_second") == 0:
        raise UsageError("max_requests_per_second: 0 would lock the project out; archive it, or give 1 or more.")
    if weight is not None:
        from app.domain.jobs.bounds import SHARE_WEIGHT

        if weight not in SHARE_WEIGHT:
            raise UsageError(f"--share-weight {weight:g} is not a number {SHARE_WEIGHT}.")
        given["share_weight"] = weight
    return given


def _number(name: str, text: str, factors: dict[str, int]) -> int | None:
    """`500GB`, `12`, `1.5`, or `none`."""
    if text.strip().lower() == NO_LIMIT:
        return None
    digits = text.strip().rstrip("BKMGTbkmgt")
    factor = factors.get(text.strip()[len(digits) :].upper())
    try:
        value = round(float(digits) * factor) if factor else -1
    except (ValueError, OverflowError):
        value = -1
    if not 0 <= value < 1 << 63:
        units = f" with {', '.join(unit for unit in factors if unit)}" if len(factors) > 1 else ""
        raise UsageError(f"{name}: {text!r} is no limit; give a number{units}, or {NO_LIMIT}.")
    return value


def _print(project: "Project", as_json: bool) -> None:
    if as_json:
        print_json(_as_json(project))
        return
    print_line(project.id)
    print_note(f"{project.name}: {_limits(project) or 'no limits'}, share weight {project.share_weight:g}")


def _limits(project: "Project") -> str:
    from app.db.tables.projects import LIMITS

    given = ((limit, getattr(project, limit)) for limit in LIMITS)
    return " ".join(f"{limit}={value}" for limit, value in given if value is not None)


def _as_json(project: "Project") -> dict[str, Any]:
    from app.db.tables.projects import LIMITS

    return {
        "id": project.id,
        "name": project.name,
        "archived": _time(project.archived_at) or None,
        "limits": {limit: getattr(project, limit) for limit in LIMITS},
        "share_weight": project.share_weight,
    }


def _time(moment: "datetime | None") -> str:
    return "" if moment is None else moment.astimezone().isoformat(sep=" ", timespec="seconds")
