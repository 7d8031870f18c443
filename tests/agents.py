"""An agent: the official MCP client, over standard input and output or over HTTP."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]


class Refused(Exception):
    """A tool answered with an error; the text is its message."""


class Agent:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.progress: list[tuple[float, str]] = []

    async def call(self, tool: str, **arguments: Any) -> Any:
        """The structured result of a tool, which the client has compared with its schema."""

        async def note(progress: float, total: float | None, message: str | None) -> None:
            self.progress.append((progress, message or ""))

        result = await self.client.call_tool(tool, arguments, progress_callback=note)
        if result.is_error:
            raise Refused(result.content[0].text)
        return result.structured_content


def over_stdio(work: Callable[[Agent], Awaitable[T]], *options: str, env: Mapping[str, str], mode: str = "auto") -> T:
    """Do the work of an agent that starts `tunery mcp` with these options; `legacy` is the protocol before 2026."""
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "app.cli", "mcp", *options], env={**env}, cwd=ROOT
    )

    async def run() -> T:
        with open(os.devnull, "w") as log:
            async with Client(stdio_client(server, errlog=log), mode=mode) as client:
                return await work(Agent(client))

    return anyio.run(run)


def over_http(work: Callable[[Agent], Awaitable[T]], url: str, api_key: str, mode: str = "auto") -> T:
    """Do the work of an agent that has this key."""

    async def run() -> T:
        headers = {"Authorization": f"Bearer {api_key}"}
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60) as http,
            Client(streamable_http_client(url, http_client=http), mode=mode) as client,
        ):
            return await work(Agent(client))

    return anyio.run(run)
