"""`tunery audit`: the audit log."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, with_administration
from app.cli.output.console import moment_text, print_json, print_note, print_table

if TYPE_CHECKING:
    from app.cli.administration.records import Administration, AuditRecord

commands = typer.Typer(no_args_is_help=True, help="Audit log of changes, for administrators.")


@commands.command("list")
@with_administration
def list_entries(
    admin: "Administration",
    project: Annotated[str | None, typer.Option(help="Only changes in this project (name or id).")] = None,
    actor: Annotated[str | None, typer.Option(help="Only changes by this API key id, or by `operator`.")] = None,
    object_id: Annotated[str | None, typer.Option("--object", help="Only changes of the object with this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of entries.")] = 50,
    after: Annotated[str | None, typer.Option(help="Only entries older than this one.", metavar="ID")] = None,
    as_json: AsJson = False,
) -> None:
    """List the entries of the audit log, newest first."""
    shown, has_more = admin.audit_entries(limit, after, project, actor, object_id)
    if as_json:
        print_json([_as_json(entry) for entry in shown])
        return
    columns = ["when", "who", "what", "objects", "from", "request"]
    print_table(columns, [_row(entry) for entry in shown], "No entries.")
    if has_more:
        print_note(f"More entries: --after {shown[-1].id}")


def _row(entry: "AuditRecord") -> list[str]:
    objects = ",".join(entry.object_ids)
    when = moment_text(entry.created_at)
    return [when, entry.actor_id, entry.action, objects, entry.address or "", entry.request_id or ""]


def _as_json(entry: "AuditRecord") -> dict[str, Any]:
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
