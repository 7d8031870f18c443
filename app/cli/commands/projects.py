"""`tunery projects`: projects and their limits."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import UsageError
from app.cli.options import AsJson, with_administration
from app.cli.output.console import moment_text, print_fields, print_json, print_line, print_note, print_table, size_text

if TYPE_CHECKING:
    from app.cli.administration.records import Administration, ProjectRecord

commands = typer.Typer(no_args_is_help=True, help="Projects and their limits, for administrators.")

NO_LIMIT = "none"
ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project.")]
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

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@commands.command("create")
@with_administration
def create(
    admin: "Administration",
    name: Annotated[str, typer.Argument(help="Name of the project.")],
    max_stored_bytes: MaxBytes = None,
    max_queued_jobs: MaxQueued = None,
    max_running_jobs: MaxRunning = None,
    max_gpu_hours: MaxGpuHours = None,
    max_requests_per_second: MaxRequests = None,
    share_weight: Weight = None,
    as_json: AsJson = False,
) -> None:
    """Create a project. Create its keys with `tunery keys create --project NAME`."""
    settings = _settings(
        max_stored_bytes, max_queued_jobs, max_running_jobs, max_gpu_hours, max_requests_per_second, share_weight
    )
    _print(admin.create_project(name, settings), as_json)


@commands.command("list")
@with_administration
def list_projects(
    admin: "Administration",
    archived: Annotated[bool, typer.Option("--archived", help="Include archived projects.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the projects with their usage, newest first."""
    rows = admin.projects(archived)
    if as_json:
        print_json([_as_json(project) | {"usage": project.usage} for project in rows])
        return
    cells = [
        [
            project.id,
            project.name,
            size_text(used["stored_bytes"]),
            f"{used['queued_jobs']} queued, {used['running_jobs']} running",
            f"{used['gpu_seconds_this_month'] / 3600:.2f}",
            _limits_text(project),
            moment_text(project.archived_at),
        ]
        for project in rows
        if (used := project.usage)
    ]
    columns = ["id", "name", "stored", "jobs", "GPU-hours", "limits", "archived"]
    print_table(columns, cells, "No projects. Create one with `tunery projects create NAME`.")


@commands.command("show")
@with_administration
def show(admin: "Administration", project: ProjectName, as_json: AsJson = False) -> None:
    """Show the limits and the usage of a project."""
    row = admin.project(project)
    used = row.usage or {}
    if as_json:
        print_json(_as_json(row) | {"usage": used})
        return
    hours = f"{used['gpu_seconds_this_month'] / 3600:.2f} this month, {used['held_gpu_seconds'] / 3600:.2f} reserved"
    print_fields(
        [
            ("id", row.id),
            ("name", row.name),
            ("limits", _limits_text(row)),
            ("share weight", f"{row.share_weight:g}"),
            ("stored", size_text(used["stored_bytes"])),
            ("jobs", f"{used['queued_jobs']} queued, {used['running_jobs']} running"),
            ("GPU-hours", hours),
            ("archived", moment_text(row.archived_at)),
        ]
    )


@commands.command("set")
@with_administration
def set_project(
    admin: "Administration",
    project: ProjectName,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    max_stored_bytes: MaxBytes = None,
    max_queued_jobs: MaxQueued = None,
    max_running_jobs: MaxRunning = None,
    max_gpu_hours: MaxGpuHours = None,
    max_requests_per_second: MaxRequests = None,
    share_weight: Weight = None,
    as_json: AsJson = False,
) -> None:
    """Change the name, limits or weight of a project. Omitted options are not changed."""
    settings = _settings(
        max_stored_bytes, max_queued_jobs, max_running_jobs, max_gpu_hours, max_requests_per_second, share_weight
    )
    _print(admin.change_project(project, name, settings), as_json)


@commands.command("archive")
@with_administration
def archive(
    admin: "Administration",
    project: ProjectName,
    cancel_jobs: Annotated[
        bool, typer.Option("--cancel-jobs", help="Cancel the unfinished jobs of the project.")
    ] = False,
) -> None:
    """Archive a project: its keys are rejected until it is unarchived. Files and results are kept."""
    print_line(f"{admin.archive_project(project, cancel_jobs).name} is archived")


@commands.command("unarchive")
@with_administration
def unarchive(admin: "Administration", project: ProjectName) -> None:
    """Unarchive a project. Its keys are valid again unless they were revoked or have expired."""
    print_line(f"{admin.unarchive_project(project).name} is active")


def _settings(
    max_bytes: str | None,
    max_queued: str | None,
    max_running: str | None,
    max_gpu_hours: str | None,
    max_requests: str | None,
    weight: float | None,
) -> dict[str, int | float | None]:
    settings: dict[str, int | float | None] = {}
    for name, text, factors in (
        ("max_stored_bytes", max_bytes, UNITS),
        ("max_queued_jobs", max_queued, {"": 1}),
        ("max_running_jobs", max_running, {"": 1}),
        ("max_gpu_seconds_per_month", max_gpu_hours, {"": 3600}),
        ("max_requests_per_second", max_requests, {"": 1}),
    ):
        if text is not None:
            settings[name] = _parse_limit(name, text, factors)
    if settings.get("max_requests_per_second") == 0:
        raise UsageError("max_requests_per_second must be 1 or more. To block all requests, archive the project.")
    if weight is not None:
        from app.domain.jobs.spec import SHARE_WEIGHT

        if weight not in SHARE_WEIGHT:
            raise UsageError(f"--share-weight {weight:g} is not a number {SHARE_WEIGHT}.")
        settings["share_weight"] = weight
    return settings


def _parse_limit(name: str, text: str, factors: dict[str, int]) -> int | None:
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
        raise UsageError(f"{name}: {text!r} is not a limit. Give a number{units}, or {NO_LIMIT}.")
    return value


def _print(project: "ProjectRecord", as_json: bool) -> None:
    if as_json:
        print_json(_as_json(project))
        return
    print_line(project.id)
    print_note(f"{project.name}: {_limits_text(project) or 'no limits'}, share weight {project.share_weight:g}")


def _limits_text(project: "ProjectRecord") -> str:
    return " ".join(f"{limit}={value}" for limit, value in project.limits.items() if value is not None)


def _as_json(project: "ProjectRecord") -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "archived": moment_text(project.archived_at) or None,
        "limits": project.limits,
        "share_weight": project.share_weight,
    }
