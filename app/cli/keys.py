"""`tunery keys`: API keys, straight on the database. The secret is shown once; only its hash is kept."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import Missing, Misused
from app.cli.options import AsJson, with_database
from app.cli.output import print_json, print_line, print_table, remark

if TYPE_CHECKING:
    from datetime import datetime

    from app.cli.database import Database

commands = typer.Typer(no_args_is_help=True, help="API keys and the projects they open.")


@commands.command("create")
@with_database
def create(
    database: "Database",
    project: Annotated[str, typer.Option(help="The project it opens; a new name makes a new project.")],
    name: Annotated[str, typer.Option(help="Who or what uses it.")] = "cli",
    as_json: AsJson = False,
) -> None:
    """Create a key and print it, this once."""
    from app.db import keys

    if not project.strip():
        raise Misused("--project is empty; give the project's name, such as `default`.")
    with database.transaction() as session:
        is_new = keys.get_project(session, project) is None
        issued = keys.issue(session, keys.ensure_project(session, project), name)
    if is_new:
        remark(f"The project {project!r} is new.")
    if as_json:
        print_json({"id": issued.id, "project": issued.project, "name": name, "key": issued.secret})
        return
    print_line(issued.secret)
    remark(f"Keep it: it is not shown again. `tunery keys revoke {issued.id}` ends it.")


@commands.command("list")
@with_database
def list_keys(database: "Database", as_json: AsJson = False) -> None:
    """List every key, without its secret."""
    from app.db import keys

    with database.transaction() as session:
        found = keys.list_keys(session)
    columns = ["id", "project", "name", "created", "last used", "revoked"]
    rows = [
        [key.id, project.name, key.name, _time(key.created_at), _time(key.last_used_at), _time(key.revoked_at)]
        for key, project in found
    ]
    if as_json:
        print_json([dict(zip((column.replace(" ", "_") for column in columns), row, strict=True)) for row in rows])
    else:
        print_table(columns, rows, "No keys. `tunery keys create --project NAME` makes one.")


@commands.command("revoke")
@with_database
def revoke(
    database: "Database", key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` has it.")]
) -> None:
    """End a key at once."""
    from app.db import keys

    with database.transaction() as session:
        if not keys.revoke(session, key_id):
            raise Missing(f"No live key has the id {key_id!r}; `tunery keys list` has them.")
    print_line(f"{key_id} revoked")


def _time(moment: "datetime | None") -> str:
    return "" if moment is None else moment.astimezone().isoformat(sep=" ", timespec="seconds")
