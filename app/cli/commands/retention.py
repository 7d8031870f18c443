"""`tunery retention`: how long projects keep files, checkpoints, logs, events and exports."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import UsageError
from app.cli.options import AsJson, with_administration
from app.cli.output.console import print_json, print_note, print_table, size_text

if TYPE_CHECKING:
    from app.cli.administration.records import Administration

commands = typer.Typer()

NONE = "none"
Days = Annotated[str | None, typer.Option(metavar="DAYS", help="Delete them after this many days, or none.")]


@commands.command("retention")
@with_administration
def show(
    admin: "Administration",
    project: Annotated[str | None, typer.Argument(metavar="PROJECT", help="Name or id. Default: all.")] = None,
    files: Days = None,
    checkpoints: Days = None,
    logs: Days = None,
    events: Days = None,
    exports: Days = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what the rules delete now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show or set the retention rules of projects, for administrators. Without a rule nothing is deleted for its age.

    Files are uploaded files; checkpoints, logs and events are those of ended jobs, never a job's result or its last
    event. With --dry-run and new rules, the rules are shown with their effect and not stored.
    """
    from app.domain.operations.retention import RetentionKind

    given = {"files": files, "checkpoints": checkpoints, "logs": logs, "events": events, "exports": exports}
    changes = {RetentionKind(kind): _days(kind, text) for kind, text in given.items() if text is not None}
    if changes and project is None:
        raise UsageError("Name the project whose rules to set: tunery retention PROJECT --files 90")
    rules = admin.retention_rules(project, changes, dry_run)
    if as_json:
        print_json(
            [
                {"project": rule.project, "kind": rule.kind, "days": rule.days}
                | ({"count": rule.due_count, "size_bytes": rule.due_bytes} if dry_run else {})
                for rule in rules
            ]
        )
        return
    columns = ["project", "kind", "days", *(["deletes now", "size"] if dry_run else [])]
    cells = [
        [
            rule.project,
            rule.kind,
            str(rule.days),
            *([str(rule.due_count), size_text(rule.due_bytes or 0)] if dry_run else []),
        ]
        for rule in rules
    ]
    print_table(columns, cells, "No retention rules: nothing is deleted for its age.")
    if dry_run and changes:
        print_note("Nothing was stored. Repeat the command without --dry-run to set the rules.")


def _days(kind: str, text: str) -> int | None:
    from app.domain.operations.retention import MAX_DAYS

    if text.strip().lower() == NONE:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_DAYS):
        raise UsageError(f"--{kind}: {text!r} is not a number of days. Give 1 to {MAX_DAYS}, or {NONE}.")
    return int(text)
