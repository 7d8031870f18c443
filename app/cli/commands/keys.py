"""`tunery keys`: API keys. A secret is shown once; only its hash is stored."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import UsageError
from app.cli.options import AsJson, with_administration
from app.cli.output.console import moment_text, print_json, print_line, print_note, print_table

if TYPE_CHECKING:
    from app.cli.administration.records import Administration

commands = typer.Typer(no_args_is_help=True, help="API keys, for administrators.")

DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Key id; see `tunery keys list`.")]


@commands.command("create")
@with_administration
def create(
    admin: "Administration",
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
    from app.domain.access.scopes import ALL

    if not project.strip():
        raise UsageError("--project is empty; give the name of the project, such as `default`.")
    expires_in_seconds = None if expires_in is None else _parse_seconds("--expires-in", expires_in)
    issued = admin.create_key(project, name, scope or [ALL], expires_in_seconds, create_project)
    if issued.is_new_project:
        print_note(f"Created the project {project!r}.")
    if as_json:
        print_json({"id": issued.id, "project": issued.project, "name": name, "key": issued.secret})
        return
    print_line(issued.secret)
    print_note(f"Save it: it is not shown again. Revoke it with `tunery keys revoke {issued.id}`.")


@commands.command("list")
@with_administration
def list_keys(admin: "Administration", as_json: AsJson = False) -> None:
    """List all keys, without their secrets."""
    columns = ["id", "project", "name", "scopes", "created", "last used", "expires", "revoked"]
    rows = [
        [key.id, key.project, key.name, ",".join(key.scopes)]
        + [moment_text(moment) for moment in (key.created_at, key.last_used_at, key.expires_at, key.revoked_at)]
        for key in admin.api_keys()
    ]
    if as_json:
        print_json([dict(zip((column.replace(" ", "_") for column in columns), row, strict=True)) for row in rows])
    else:
        print_table(columns, rows, "No keys. Create one with `tunery keys create --project NAME`.")


@commands.command("rotate")
@with_administration
def rotate(
    admin: "Administration",
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option(help="How long the old secret stays valid, such as 24h; 0s: not at all.", metavar="TIME")
    ] = "24h",
    as_json: AsJson = False,
) -> None:
    """Replace the secret of a key and print the new one, which is shown only once. Id, project and scopes stay."""
    key = admin.rotate_key(key_id, _parse_seconds("--overlap", overlap))
    if as_json:
        print_json({"id": key.id, "key": key.secret, "old_key_expires": moment_text(key.previous_expires_at)})
        return
    print_line(key.secret)
    print_note(f"Save it: it is not shown again. The old secret is valid until {moment_text(key.previous_expires_at)}.")
    if key.replaced_file is not None:
        print_note(f"{key.replaced_file} has the new secret.")


@commands.command("revoke")
@with_administration
def revoke(admin: "Administration", key_id: KeyId) -> None:
    """Revoke a key immediately."""
    admin.revoke_key(key_id)
    print_line(f"{key_id} revoked")


def _parse_seconds(option: str, text: str) -> int:
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text} is not a number with one of the units s, m, h, d, w, such as 90d.")
    return int(match[1]) * SECONDS[match[2]]
