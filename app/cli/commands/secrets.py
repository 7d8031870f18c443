"""`tunery secrets`: which key protects which secret, and the change to a new key."""

from typing import TYPE_CHECKING

import typer

from app.cli.options import AsJson, with_administration
from app.cli.output.console import print_json, print_line, print_note, print_table

if TYPE_CHECKING:
    from app.cli.administration.records import Administration

commands = typer.Typer(no_args_is_help=True, help="Encrypted secrets and their keys, for administrators.")


@commands.command("list")
@with_administration
def list_secrets(admin: "Administration", as_json: AsJson = False) -> None:
    """List credentials of delivery targets and signing secrets of webhooks, with the key that protects each.

    The secrets themselves are not shown. `lost` means that no key of TUNERY_SECRET_KEYS decrypts it.
    """
    secrets = admin.secrets()
    if as_json:
        print_json([vars(each) for each in secrets])
        return
    cells = [
        [each.kind, each.id, each.name, each.project_id or "", each.protection, each.key or ""] for each in secrets
    ]
    print_table(["kind", "id", "name", "project", "protection", "key"], cells, "No secrets are stored.")


@commands.command("rotate")
@with_administration
def rotate(admin: "Administration", as_json: AsJson = False) -> None:
    """Re-encrypt all secrets with the first key of TUNERY_SECRET_KEYS.

    Put the new key in front of the old one, restart the service, rotate, and remove the old key. Repeat the command
    after an interruption.
    """
    rotated = 0
    while True:
        batch = admin.rotate_secrets()
        rotated += batch.rotated
        if not batch.remaining or not batch.rotated:
            break
    if as_json:
        print_json({"rotated": rotated, "lost": batch.lost})
        return
    print_line(f"{rotated} secrets were re-encrypted")
    if batch.lost:
        print_note(f"{batch.lost} are lost: no key decrypts them; `tunery secrets list` names them.")
