"""`tunery audit`: who changed what, straight from the database."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.commands.projects import find
from app.cli.errors import Missing
from app.cli.options import AsJson, with_database
from app.cli.output.console import print_json, print_note, print_table

if TYPE_CHECKING:
    from app.cli.client.database import Database
    from app.db.tables import AuditEntry

commands = typer.Typer(no_args_is_help=True, help="Who changed what.")


@commands.command("list")
@with_database
def list_entries(
    database: "Database",
    project: Annotated[str | None, typer.Option(help="Only of this project, by name or id.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only by this key, or operator.")] = None,
    object_id: Annotated[str | None, typer.Option("--object", help="Only on this object, such as a job's id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    after: Annotated[str | None, typer.Option(help="Older than this entry.", metavar="ID")] = None,
    as_json: AsJson = False,
) -> None:
    """List changes, newest first."""
    from app.db.access import audit

    with database.transaction() as session:
        last = None if after is None else audit.get(session, after)
        if after is not None and last is None:
            raise Missing(f"There is no entry {after!r} in the audit log.")
        project_ids = [find(session, project).id] if project else []
        rows = audit.page(
            session,
            limit + 1,
            last,
            project_ids=project_ids,
            actor_ids=[actor] if actor else [],
            object_ids=[object_id] if object_id else [],
        )
    shown = rows[:limit]
    if as_json:
        print_json([_as_json(entry) for entry in shown])
        return
    columns = ["when", "who", "what", "objects", "from", "request"]
    print_table(columns, [_row(entry) for entry in shown], "Nothing was changed yet.")
    if len(rows) > limit:
        print_note(f"There is more: --after {shown[-1].id}")


def _row(entry: "AuditEntry") -> list[str]:
    when = entry.created_at.astimezone().isoformat(sep=" ", timespec="seconds")
    objects = ",".join(entry.object_ids)
    return [when, entry.actor_id, entry.action, objects, entry.address or "", entry.request_id or ""]


def _as_json(entry: "AuditEntry") -> dict[str, Any]:
    return {
        "id": entry.id,
        "when": entry.created_at.isoformat(),
        "actor_type": entry.actor_type,
        "actor": entry.actor_id,
        "action": entry.action,
        "project_id": entry.project_id,
        "objects": entry.object_ids,
        "address": entry.address,
        "request_id": entry.request_id,
    }
