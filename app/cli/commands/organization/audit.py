"""`tunery audit`: the audit log, read from the database."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.commands.organization.projects import find_project
from app.cli.errors import NotFoundError
from app.cli.options import AsJson, with_database
from app.cli.output.console import print_json, print_note, print_table

if TYPE_CHECKING:
    from app.cli.client.database import Database
    from app.db.tables import AuditEntry

commands = typer.Typer(no_args_is_help=True, help="Audit log of changes (on the server).")


@commands.command("list")
@with_database
def list_entries(
    database: "Database",
    project: Annotated[str | None, typer.Option(help="Only changes in this project (name or id).")] = None,
    actor: Annotated[str | None, typer.Option(help="Only changes by this API key id, or by `operator`.")] = None,
    object_id: Annotated[str | None, typer.Option("--object", help="Only changes of the object with this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of entries.")] = 50,
    after: Annotated[str | None, typer.Option(help="Only entries older than this one.", metavar="ID")] = None,
    as_json: AsJson = False,
) -> None:
    """List the entries of the audit log, newest first."""
    from app.db.access import audit

    with database.transaction() as session:
        after_entry = None if after is None else audit.get(session, after)
        if after is not None and after_entry is None:
            raise NotFoundError(f"The audit log has no entry {after!r}.")
        project_ids = [find_project(session, project).id] if project else []
        rows = audit.page(
            session,
            limit + 1,
            after_entry,
            project_ids=project_ids,
            actor_ids=[actor] if actor else [],
            object_ids=[object_id] if object_id else [],
        )
    shown = rows[:limit]
    if as_json:
        print_json([_as_json(entry) for entry in shown])
        return
    columns = ["when", "who", "what", "objects", "from", "request"]
    print_table(columns, [_row(entry) for entry in shown], "No entries.")
    if len(rows) > limit:
        print_note(f"More entries: --after {shown[-1].id}")


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
