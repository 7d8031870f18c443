"""`tunery keys`: API keys, managed in the database. A secret is shown once; only its hash is stored."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import NotFoundError, UsageError
from app.cli.options import AsJson, with_database
from app.cli.output.console import print_json, print_line, print_note, print_table

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from app.cli.client.database import Database
    from app.db.tables import Project

commands = typer.Typer(no_args_is_help=True, help="API keys (on the server).")

DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Key id; see `tunery keys list`.")]


@commands.command("create")
@with_database
def create(
    database: "Database",
    project: Annotated[str, typer.Option(help="Name or id of the key's project.")],
    name: Annotated[str, typer.Option(help="Name of the key.")] = "cli",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Scope to grant; repeatable. Default: all (does not include admin)."),
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="Lifetime, such as 90d or 12h. Default: unlimited.", metavar="TIME")
    ] = None,
    create_project: Annotated[
        bool, typer.Option("--create-project", help="Create the project if it does not exist.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a key and print its secret, which is shown only once. The first key also creates its project."""
    from app.db.access import projects
    from app.domain.access.scopes import ALL
    from app.services.access import keys

    if not project.strip():
        raise UsageError("--project is empty; give the name of the project, such as `default`.")
    with database.transaction() as session:
        existing_project = projects.get(session, project) or projects.get_by_name(session, project)
        owner = existing_project or _create_project(session, project, create_project)
        expires_in_seconds = None if expires_in is None else _parse_seconds("--expires-in", expires_in)
        issued = keys.create(session, owner, name, scope or [ALL], expires_in_seconds)
    if existing_project is None:
        print_note(f"Created the project {project!r}.")
    if as_json:
        print_json({"id": issued.id, "project": issued.project, "name": name, "key": issued.secret})
        return
    print_line(issued.secret)
    print_note(f"Save it: it is not shown again. Revoke it with `tunery keys revoke {issued.id}`.")


@commands.command("list")
@with_database
def list_keys(database: "Database", as_json: AsJson = False) -> None:
    """List all keys, without their secrets."""
    from app.db.access import keys

    with database.transaction() as session:
        rows_with_projects = keys.list_keys(session)
    columns = ["id", "project", "name", "scopes", "created", "last used", "expires", "revoked"]
    rows = [
        [key.id, project.name, key.name, ",".join(key.scopes)]
        + [_time_text(moment) for moment in (key.created_at, key.last_used_at, key.expires_at, key.revoked_at)]
        for key, project in rows_with_projects
    ]
    if as_json:
        print_json([dict(zip((column.replace(" ", "_") for column in columns), row, strict=True)) for row in rows])
    else:
        print_table(columns, rows, "No keys. Create one with `tunery keys create --project NAME`.")


@commands.command("rotate")
@with_database
def rotate(
    database: "Database",
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option(help="How long the old secret stays valid, such as 24h; 0s: not at all.", metavar="TIME")
    ] = "24h",
    as_json: AsJson = False,
) -> None:
    """Replace the secret of a key and print the new one, which is shown only once. Id, project and scopes stay."""
    from app.services.access import keys

    with database.transaction() as session:
        key, secret = keys.rotate(session, None, key_id, _parse_seconds("--overlap", overlap))
    if as_json:
        print_json({"id": key.id, "key": secret, "old_key_expires": _time_text(key.previous_expires_at)})
        return
    print_line(secret)
    print_note(f"Save it: it is not shown again. The old secret is valid until {_time_text(key.previous_expires_at)}.")


@commands.command("revoke")
@with_database
def revoke(database: "Database", key_id: KeyId) -> None:
    """Revoke a key immediately."""
    from app.db.access import audit, keys

    with database.transaction() as session:
        key = keys.get(session, key_id)
        audit.add_object(key_id, key.project_id if key else None)
        if not keys.revoke(session, key_id):
            raise NotFoundError(f"No active key has the id {key_id!r}; see `tunery keys list`.")
    print_line(f"{key_id} revoked")


def _create_project(session: "Session", name: str, is_requested: bool) -> "Project":
    """Create the project of a key if that is requested (a typo must not create one) or this is the first key."""
    from app.db.access import keys, projects
    from app.services.access.projects import validate_name

    if not is_requested and keys.has_usable_key(session):
        raise NotFoundError(
            f"No such project: {name!r}; see `tunery projects list`, or create it with `tunery projects create` or "
            "--create-project."
        )
    return projects.ensure(session, validate_name(name, "--project"))


def _parse_seconds(option: str, text: str) -> int:
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text} is not a number with one of the units s, m, h, d, w, such as 90d.")
    return int(match[1]) * SECONDS[match[2]]


def _time_text(moment: "datetime | None") -> str:
    return "" if moment is None else moment.astimezone().isoformat(sep=" ", timespec="seconds")
