"""`tunery login` and `tunery whoami`: the service and the key of a profile."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import typer

from app.cli.client.profiles import DEFAULT_PROFILE, ServiceProfile, check_name, read_profiles, store_profile
from app.cli.client.service_discovery import DEFAULT_BASE_URL, ServiceAddress, normalize_url, validate_key
from app.cli.errors import UsageError
from app.cli.options import AsJson, BaseUrl, ProfileName, with_client
from app.cli.output.console import print_json, print_line
from app.cli.output.results import Result, fields

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()


@commands.command("login")
def login(base_url: BaseUrl = None, profile: ProfileName = None, as_json: AsJson = False) -> None:
    """Store the URL of a service and a key as a profile, once the service has accepted the key.

    The key is asked for and not shown, or read from TUNERY_API_KEY. Nothing is asked for if standard input is no
    terminal.
    """
    from app.cli.client.http import Client  # slow import, which `--help` does not need

    name = profile or DEFAULT_PROFILE
    check_name(name)
    key = os.environ.get("TUNERY_API_KEY", "").strip()
    places = {"--base-url (or TUNERY_BASE_URL)": base_url, "TUNERY_API_KEY": key}
    if (missing := [place for place, value in places.items() if not value]) and not sys.stdin.isatty():
        raise UsageError(f"Missing: {' and '.join(missing)}; standard input is no terminal to ask at.")
    if not base_url:
        stored = read_profiles().get(name)
        base_url = typer.prompt("URL of the service", stored.base_url if stored else DEFAULT_BASE_URL, err=True)
    base_url = normalize_url(base_url)
    key = key or typer.prompt("API key (not shown)", hide_input=True, err=True).strip()
    address = ServiceAddress(base_url, validate_key(key, "The key"), "this login")
    with contextlib.closing(Client(address)) as client:
        project = client.get("project")["name"]
    path = store_profile(name, ServiceProfile(base_url, key))
    value = {"profile": name, "server": base_url, "project": project, "file": str(path)}
    if as_json:
        print_json(value)
    else:
        print_line(f"Logged in to {base_url}, project {project}, as the profile {name} in {path}.")


@commands.command("whoami")
@with_client
def whoami(client: "Client") -> Result:
    """Show which service, project and key the commands use, and the scopes of the key."""
    project, address = client.get("project"), client.address
    value = {
        "server": address.base_url,
        "project": project["name"],
        "scopes": project["api_key"]["scopes"],
        "profile": address.profile,
        "key": project["api_key"]["id"],
        "key_source": address.key_source,
    }
    columns = {name.replace("_", " "): name for name in value}
    return Result(value, fields(value, columns | {"scopes": ("scopes", ", ".join)}).show)
