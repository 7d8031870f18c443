"""`tunery keys`: API keys, straight on the database. The secret is shown once; only its hash is kept."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import Missing, UsageError
from app.cli.options import AsJson, with_database
from app.cli.output.console import print_json, print_line, print_note, print_table

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from app.cli.client.database import Database
    from app.db.tables import Project

commands = typer.Typer(no_args_is_help=True, help="API keys and the projects they open.")

DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
KeyId = Annotated[str, typer.Argument(metavar="ID", help="As `keys list` has it.")]


@commands.command("create")
@with_database
def create(
    database: "Database",
    project: Annotated[str, typer.Option(help="The project it opens: its name or its id.")],
    name: Annotated[str, typer.Option(help="Who or what uses it.")] = "cli",
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do; again for more. Absent: all, which is not admin.")
    ] = None,
    expires_in: Annotated[str | None, typer.Option(help="Such as 90d or 12h; absent: never.", metavar="TIME")] = None,
    create_project: Annotated[
        bool, typer.Option("--create-project", help="Make the project if it is not there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it, this once. The first key of all makes its project, too."""
    from app.db.access import projects
    from app.domain.access.scopes import ALL
    from app.services.access import keys

    if not project.strip():
        raise UsageError("--project is empty; give the project's name, such as `default`.")
    with database.transaction() as session:
        known = projects.get(session, project) or projects.get_by_name(session, project)
        owner = known or _new_project(session, project, create_project)
        expires_in_seconds = None if expires_in is None else _seconds("--expires-in", expires_in)
        issued = keys.create(session, owner, name, scope or [ALL], expires_in_seconds)
    if known is None:
        print_note(f"The project {project!r} is new.")
    if as_json:
        print_json({"id": issued.id, "project": issued.project, "name": name, "key": issued.secret})
        return
    print_line(issued.secret)
    print_note(f"Keep it: it is not shown again. `tunery keys revoke {issued.id}` ends it.")


@commands.command("list")
@with_database
def list_keys(database: "Database", as_json: AsJson = False) -> None:
    """List every key, without its secret."""
    from app.db.access import keys

    with database.transaction() as session:
        found = keys.list_keys(session)
    columns = ["id", "project", "name", "scopes", "created", "last used", "expires", "revoked"]
    rows = [
        [key.id, project.name, key.name, ",".join(key.scopes)]
        + [_time(moment) for moment in (key.created_at, key.last_used_at, key.expires_at, key.revoked_at)]
        for key, project in found
    ]
    if as_json:
        print_json([dict(zip((column.replace(" ", "_") for column in columns), row, strict=True)) for row in rows])
    else:
        print_table(columns, rows, "No keys. `tunery keys create --project NAME` makes one.")


@commands.command("rotate")
@with_database
def rotate(
    database: "Database",
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option(help="How long the old secret goes on working, such as 24h; 0s: no longer.", metavar="TIME")
    ] = "24h",
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret and print it, this once. Its id, project and scopes stay."""
    from app.services.access import keys

    with database.transaction() as session:
        key, secret = keys.rotate(session, None, key_id, _seconds("--overlap", overlap))
    if as_json:
        print_json({"id": key.id, "key": secret, "old_key_expires": _time(key.previous_expires_at)})
        return
    print_line(secret)
    print_note(f"Keep it: it is not shown again. The old one works until {_time(key.previous_expires_at)}.")


@commands.command("revoke")
@with_database
def revoke(database: "Database", key_id: KeyId) -> None:
    """End a key at once."""
    from app.db.access import audit, keys

    with database.transaction() as session:
        key = keys.get(session, key_id)
        audit.add_object(key_id, key.project_id if key else None)
        if not keys.revoke(session, key_id):
            raise Missing(f"No live key has the id {key_id!r}; `tunery keys list` has them.")
    print_line(f"{key_id} revoked")


def _new_project(session: "Session", name: str, asked_for: bool) -> "Project":
    """Only when asked for, as a slip of the fingers would otherwise make one; nobody has any before the first key."""
    from app.db.access import keys, projects
    from app.services.access.projects import validate_name

    if not asked_for and keys.has_usable_key(session):
        raise Missing(
            f"There is no project {name!r}; `tunery projects list` has them, and `tunery projects create` or "
            "--create-project makes a new one."
        )
    return projects.ensure(session, validate_name(name, "--project"))


def _seconds(option: str, text: str) -> int:
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text}: it takes a number and one of s, m, h, d, w, such as 90d.")
    return int(match[1]) * SECONDS[match[2]]


def _time(moment: "datetime | None") -> str:
    return "" if moment is None else moment.astimezone().isoformat(sep=" ", timespec="seconds")
