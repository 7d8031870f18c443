"""`tunery keys`, `audit` and `secrets`: API keys, the log of changes, and encrypted secrets, for administrators.

The secret of a key is shown once; only its hash is stored.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.profiles import read_profiles, store_profile
from app.cli.client.references import PROJECT, find_project
from app.cli.client.service_discovery import find_encryption_keys, find_layout, has_database, read_key
from app.cli.errors import NotFoundError, UsageError
from app.cli.options import BaseUrl, DataDir, open_database, with_client
from app.cli.output.console import print_note, time_text
from app.cli.output.results import Columns, Result, line, table
from app.cli.resource import named
from app.domain.error_text.json_text import counted

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json

commands = typer.Typer(no_args_is_help=True, help="API keys, for administrators.")
audit = typer.Typer(no_args_is_help=True, help="Audit log of changes, for administrators.")
secrets = typer.Typer(no_args_is_help=True, help="Encrypted secrets and their keys, for administrators.")

KEYS = "organization/api_keys"
MAX_ROTATED = 500  # secrets in one transaction
DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Key id; see `tunery keys list`.")]


@commands.command("create")
@with_client
def create_key(
    client: "Client",
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
    database: Annotated[
        bool,
        typer.Option("--database", help="Create it in the database, on the server: the first key, or without an API."),
    ] = False,
    data_dir: DataDir = None,
) -> Result:
    """Create a key and print its secret, which is shown only once. The first key also creates its project."""
    from app.domain.access.scopes import ALL, validated_scopes

    if not project.strip():
        raise UsageError("--project is empty; give the name of the project, such as `default`.")
    body = {
        "name": name,
        "scopes": validated_scopes(scope or [ALL]),  # before a project is created
        "expires_in_seconds": None if expires_in is None else _seconds("--expires-in", expires_in),
    }
    if database:
        key = _create_in_database(data_dir, project, body, create_project)
    else:
        owner = _find_or_create(client, project, create_project)
        key = client.post(f"{PROJECT.path}/{owner['id']}/api_keys", body)
    return line(key, key["value"], f"Save it: it is not shown again. Revoke it with `tunery keys revoke {key['id']}`.")


@commands.command("list")
@with_client
def list_keys(client: "Client") -> Result:
    """List all keys, without their secrets."""
    rows = list(client.pages(KEYS, include_revoked=True))
    # after the keys: a project that is created in between has none of these
    names = {each["id"]: each["name"] for each in client.pages(PROJECT.path, include_archived=True)}
    columns: Columns = {
        "id": "id",
        "project": ("project_id", names.__getitem__),
        "name": "name",
        "scopes": ("scopes", ",".join),
        "created": ("created_at", time_text),
        "last used": ("last_used_at", time_text),
        "expires": ("expires_at", time_text),
        "revoked": ("revoked_at", time_text),
    }
    return table(reversed(rows), columns, "No keys. Create one with `tunery keys create --project NAME`.")


@commands.command("rotate")
@with_client
def rotate_key(
    client: "Client",
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option(help="How long the old secret stays valid, such as 24h; 0s: not at all.", metavar="TIME")
    ] = "24h",
    data_dir: DataDir = None,
) -> Result:
    """Replace the secret of a key and print the new one, which is shown only once. Id, project and scopes stay."""
    path, file = f"{_key_path(client, key_id)}/rotate", find_layout(data_dir).admin_key
    own_secret = client.address.api_key
    is_own = client.get("project")["api_key"]["id"] == key_id
    profiles = {name: each for name, each in read_profiles().items() if is_own and each.api_key == own_secret}
    key = client.post(path, {"overlap_seconds": _seconds("--overlap", overlap)})
    note = (
        f"Save it: it is not shown again. The old secret is valid until {time_text(key['previous_value_expires_at'])}."
    )
    for name, stored in profiles.items():
        note += (
            f"\nThe profile {name} in {store_profile(name, stored._replace(api_key=key['value']))} has the new secret."
        )
    if is_own and own_secret == read_key(file):  # `tunery up` and its commands read it
        from app.cli.local_stack.data_directory import write_secret

        write_secret(file, f"{key['value']}\n")
        note += f"\n{file} has the new secret."
    return line(key, key["value"], note)


@commands.command("revoke")
@with_client
def revoke_key(client: "Client", key_id: KeyId) -> Result:
    """Revoke a key immediately."""
    return line(client.delete(_key_path(client, key_id)), f"{key_id} revoked")


@audit.command("list")
@with_client
def list_entries(
    client: "Client",
    project: Annotated[str | None, typer.Option(help="Only changes in this project (name or id)."), PROJECT] = None,
    actor: Annotated[str | None, typer.Option(help="Only changes by this API key id, or by `operator`.")] = None,
    object_id: Annotated[str | None, typer.Option("--object", help="Only changes of the object with this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of entries.")] = 50,
    after: Annotated[str | None, typer.Option(help="Only entries older than this one.", metavar="ID")] = None,
) -> Result:
    """List the entries of the audit log, newest first."""
    query: dict[str, Any] = {"project_ids[]": project, "actor_ids[]": actor, "resource_ids[]": object_id}
    entries, has_more = client.first_items("organization/audit_logs", limit, after=after, **query)
    columns: Columns = {
        "when": ("effective_at", time_text),
        "who": ("actor", lambda actor: str(actor["id"])),
        "what": "type",
        "objects": ("object_ids", ",".join),
        "from": "ip_address",
        "request": "request_id",
    }
    return table(entries, columns, "No entries.", f"More entries: --after {entries[-1]['id']}" if has_more else "")


named(secrets, "organization/secrets").add_list(
    "List credentials of delivery targets and signing secrets of webhooks, with the key that protects each.\n\n"
    "The secrets themselves are not shown. `lost` means that no key of TUNERY_SECRET_KEYS decrypts it.",
    {key.removesuffix("_id"): key for key in ("kind", "id", "name", "project_id", "protection", "key")},
    "No secrets are stored.",
    page_size=None,
)


@secrets.command("rotate")
@with_client
def rotate_secrets(client: "Client", base_url: BaseUrl = None, data_dir: DataDir = None) -> Result:
    """Re-encrypt all secrets with the first key of TUNERY_SECRET_KEYS.

    Put the new key in front of the old one, restart the service, rotate, and remove the old key. Repeat the command
    after an interruption. On the server it needs no API, only the database.
    """
    is_local, rotated = has_database(base_url or client.address.profile, data_dir), 0
    while True:
        batch = _rotate_in_database(data_dir) if is_local else client.post("organization/secrets/rotate")
        rotated += batch["rotated"]
        if not batch["remaining"] or not batch["rotated"]:
            break
    lost = batch["lost"]
    note = f"Lost, as no key decrypts them: {lost}; `tunery secrets list` names them." if lost else ""
    return line({"rotated": rotated, "lost": lost}, f"{counted(rotated, 'secret')} re-encrypted", note)


def _seconds(option: str, text: str) -> int:
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text} is not a number with one of the units s, m, h, d, w, such as 90d.")
    return int(match[1]) * SECONDS[match[2]]


def _find_or_create(client: "Client", project: str, may_create: bool) -> "Json":
    """The project of a new key. A misspelled name must not create one."""
    try:
        return find_project(client, project)
    except NotFoundError as error:
        if not may_create:
            raise NotFoundError(f"{error} Or create it with --create-project.") from None
    print_note(f"Created the project {project!r}.")
    return client.post(PROJECT.path, {"name": project})


def _create_in_database(data_dir: Path | None, project: str, body: "Json", may_create: bool) -> "Json":
    """What was asked for, with the ids and the secret. The very first key also creates its project."""
    from app.services.access import keys, projects

    with open_database("keys.create", data_dir).transaction() as session:
        owner = projects.find(session, project)
        if owner is None:
            if not may_create and keys.has_usable_key(session):
                raise NotFoundError(f"No such project: {project!r}. Create it with --create-project.")
            owner = projects.ensure(session, projects.validate_name(project, "--project"))
            print_note(f"Created the project {project!r}.")
        key = keys.create(session, owner, body["name"], body["scopes"], body["expires_in_seconds"])
        return body | {"id": key.id, "project_id": owner.id, "value": key.secret}


def _key_path(client: "Client", key_id: str) -> str:
    """The path of a key that is not revoked. Raises NotFoundError."""
    for each in client.pages(KEYS):
        if each["id"] == key_id:
            return f"{PROJECT.path}/{each['project_id']}/api_keys/{key_id}"
    raise NotFoundError(f"No active key has the id {key_id!r}; see `tunery keys list`.")


def _rotate_in_database(data_dir: Path | None) -> "Json":
    from app.services.operations import secrets

    with open_database("secrets.rotate", data_dir).transaction() as session:
        return vars(secrets.rotate(session, find_encryption_keys(data_dir), MAX_ROTATED))
