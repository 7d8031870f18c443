"""`tunery retention`: how long projects keep files, checkpoints, logs, events and exports."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.commands.organization.projects import find_project
from app.cli.errors import UsageError
from app.cli.options import AsJson, with_database
from app.cli.output.console import print_json, print_note, print_table, size_text

if TYPE_CHECKING:
    from app.cli.client.database import Database

commands = typer.Typer()

NONE = "none"
PREVIEW_LIMIT = 1_000_000
Days = Annotated[str | None, typer.Option(metavar="DAYS", help="Delete them after this many days, or none.")]


@commands.command("retention")
@with_database
def show(
    database: "Database",
    project: Annotated[str | None, typer.Argument(metavar="PROJECT", help="Name or id. Default: all.")] = None,
    files: Days = None,
    checkpoints: Days = None,
    logs: Days = None,
    events: Days = None,
    exports: Days = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what the rules delete now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show or set the retention rules of projects (on the server). Without a rule nothing is deleted for its age.

    Files are uploaded files; checkpoints, logs and events are those of ended jobs, never a job's result or its last
    event. With --dry-run and new rules, the rules are shown with their effect and not stored.
    """
    from app.db import retention
    from app.domain.retention import RetentionKind

    given = {"files": files, "checkpoints": checkpoints, "logs": logs, "events": events, "exports": exports}
    changes = {RetentionKind(kind): _days(kind, text) for kind, text in given.items() if text is not None}
    if changes and project is None:
        raise UsageError("Name the project whose rules to set: tunery retention PROJECT --files 90")
    with database.transaction() as session:
        row = find_project(session, project) if project is not None else None
        for kind, days in changes.items():
            assert row is not None
            retention.set_rule(session, row.id, kind, days)
        session.flush()
        found = [
            (owner.name, rule.kind, rule.days, retention.due(session, rule, PREVIEW_LIMIT) if dry_run else None)
            for owner, rule in retention.rules(session, row.id if row else None)
        ]
        if dry_run:
            session.rollback()
    if as_json:
        print_json(
            [
                {"project": name, "kind": kind, "days": days}
                | ({"count": due.count, "size_bytes": due.size_bytes} if due else {})
                for name, kind, days, due in found
            ]
        )
        return
    columns = ["project", "kind", "days", *(["deletes now", "size"] if dry_run else [])]
    cells = [
        [name, kind, str(days), *([str(due.count), size_text(due.size_bytes)] if due else [])]
        for name, kind, days, due in found
    ]
    print_table(columns, cells, "No retention rules: nothing is deleted for its age.")
    if dry_run and changes:
        print_note("Nothing was stored. Repeat the command without --dry-run to set the rules.")


def _days(kind: str, text: str) -> int | None:
    from app.domain.retention import MAX_DAYS

    if text.strip().lower() == NONE:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_DAYS):
        raise UsageError(f"--{kind}: {text!r} is not a number of days. Give 1 to {MAX_DAYS}, or {NONE}.")
    return int(text)
