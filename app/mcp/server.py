"""The MCP server: which tools and resources it has, and who may call it over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.resources import FileResource
from mcp.server.mcpserver.tools import Tool
from mcp.types import ToolAnnotations
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

import app
from app.cli.client.service_discovery import ServiceAddress
from app.mcp.tools import Tools

PACKAGE = Path(app.__file__).parent
INDEX = "llms.txt"  # of the site
INSTRUCTIONS = (
    "Fine-tune language models on the operator's GPUs. Begin with get_started. Never create a job before its dataset "
    "is valid and the person has accepted its plan."
)


def make_server(find_address: Callable[[str | None], ServiceAddress], root: Path | None, write: bool) -> MCPServer:
    """The server of a caller who may read, or `write`, with the key that `find_address` makes of a bearer key.

    Files are read below `root`; without it, as over HTTP, uploads have their content in the call.
    """
    pages = list(_pages())

    def address_of(ctx: Context[Any, Any]) -> ServiceAddress:
        return find_address(bearer_key(ctx.headers))

    index = [page for page in pages if page.name == INDEX] or pages
    tools = Tools(address_of, root or Path(), [str(page.uri) for page in index], write)
    reading = (
        tools.get_started, tools.list_models, tools.validate_dataset, tools.plan_job, tools.get_job, tools.wait_job,
        tools.list_jobs,
    )  # fmt: skip
    upload = tools.upload_content if root is None else tools.upload_file
    writing = (upload, tools.create_job, tools.cancel_job, tools.evaluate, tools.deliver) if write else ()
    return MCPServer(
        "tunery",
        instructions=INSTRUCTIONS,
        version=version("tunery"),
        log_level="WARNING",
        resources=[*pages],
        tools=[
            *(_tool(run, ToolAnnotations(read_only_hint=True)) for run in reading),
            *(_tool(run, ToolAnnotations(destructive_hint=run == tools.cancel_job)) for run in writing),
        ],
    )


def http_app(server: MCPServer, is_local: bool) -> ASGIApp:
    """The server as an application at /mcp; every request needs a bearer key, which the API checks.

    If it `is_local`, Host and Origin must be loopback addresses, so that no page of a browser reaches it by DNS
    rebinding. Else its names are not known, and no request may have an Origin, which a browser sends.
    """
    # Without sessions: no request gets what one with another key has begun.
    inner = server.streamable_http_app(stateless_http=True, host="127.0.0.1" if is_local else "0.0.0.0")

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if scope["type"] == "lifespan":
            await inner(scope, receive, send)
        elif "origin" in headers and not is_local:
            await PlainTextResponse("Requests of browsers are refused.", 403)(scope, receive, send)
        elif bearer_key(headers) is None:
            text = "Send an API key of Tunery: Authorization: Bearer tnry_..."
            await PlainTextResponse(text, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        else:
            await inner(scope, receive, send)

    return check


def address_with_key(base_url: str) -> Callable[[str | None], ServiceAddress]:
    """How requests over HTTP are sent on: to this service, with the caller's key."""
    return lambda key: ServiceAddress(base_url, key, "the Authorization header")


def bearer_key(headers: Any) -> str | None:
    """The key of an Authorization header, if another header can carry it."""
    scheme, _, key = (headers.get("authorization", "") if headers else "").partition(" ")
    key = key.strip()
    return key if scheme.lower() == "bearer" and key.isascii() and key.isprintable() and key else None


def _tool(run: Callable[..., Any], annotations: ToolAnnotations) -> Tool:
    """The tool of a method. Agents read all schemas before their first call, so these are made short."""
    name = "upload_dataset" if run.__name__.startswith("upload_") else run.__name__
    tool = Tool.from_function(run, name=name, annotations=annotations)
    tool.parameters = _shortened(tool.parameters)
    tool.fn_metadata.output_schema = _shortened(tool.fn_metadata.output_schema)
    return tool


def _shortened(schema: Any) -> Any:
    """A schema without the titles that repeat names, and with short forms of what may be null."""
    if isinstance(schema, list):
        return [_shortened(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    short = {key: _shortened(value) for key, value in schema.items() if key != "title" or isinstance(value, dict)}
    one, *others = short.get("anyOf", [{}])
    if "type" in one and others == [{"type": "null"}]:
        del short["anyOf"]
        short |= one | {"type": [one["type"], "null"]}
        short.pop("default", None)
    return short


def _pages() -> Iterator[FileResource]:
    """The pages of the site in the package, or else of the checkout, as Markdown, and the index for agents."""
    is_checkout = (PACKAGE.parent / "pyproject.toml").is_file()  # an installed package has those of others beside it
    directory = PACKAGE.parent / "docs" if is_checkout and not (PACKAGE / "site").is_dir() else PACKAGE / "site"
    for path in sorted(directory.rglob("*.md")) + sorted(directory.glob(INDEX)):
        name = path.relative_to(directory).as_posix()
        yield FileResource(uri=f"tunery://docs/{name}", name=name, path=path, mime_type="text/markdown")
