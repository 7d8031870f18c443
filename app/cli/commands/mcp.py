"""`tunery mcp`: an MCP server for agents, over standard input and output or over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.client.service_discovery import find_service
from app.cli.errors import UsageError
from app.cli.local_stack.machine import is_loopback
from app.cli.options import BaseUrl, DataDir, ProfileName
from app.cli.output.console import print_note

commands = typer.Typer()


@commands.command("mcp")
def serve(
    write: Annotated[
        bool, typer.Option("--write", help="List the tools that upload, create, cancel, evaluate and deliver, too.")
    ] = False,
    root: Annotated[
        Path, typer.Option(help="Directory of the files that may be uploaded.", file_okay=False, exists=True)
    ] = Path(),
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve http://HOST:PORT/mcp. Default: standard input and output."),
    ] = None,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
    profile: ProfileName = None,
) -> None:
    """Serve the Model Context Protocol to an agent. It can read, and with --write create.

    On standard input and output the calls have the key of this command. Over HTTP every request has its own as a
    bearer key, and an upload has its content instead of a path.
    """
    try:
        import mcp  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError("This command needs the package mcp: run `pip install 'mcp>=2.3,<3'`.") from None
    import uvicorn

    from app.mcp.server import address_with_key, http_app, make_server

    if http is None:
        make_server(lambda _: find_service(base_url, data_dir, profile), root, write).run("stdio")
        return
    host, port = _address(http)
    address = find_service(base_url, data_dir, profile)
    server = http_app(make_server(address_with_key(address.base_url), None, write), is_loopback(host))
    print_note(f"Serving http://{http}/mcp for {address.base_url}. Stop it with Ctrl-C.")
    uvicorn.run(server, host=host, port=port, log_level="warning", ws="none")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise UsageError(f"--http {text} is not of the form HOST:PORT, such as 127.0.0.1:8765.")
    return host.strip("[]"), int(port)
