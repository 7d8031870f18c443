"""Limits the duration of streams and long polls: during these tests no event ends them."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

STREAM_SECONDS = 0.1
WAIT_SECONDS = 0.1


class ShortStreams:
    """Plain ASGI middleware: ends streams of server-sent events after STREAM_SECONDS, as a shutdown does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/stream"):
            await self.app(scope, receive, send)
            return
        is_stream, has_ended = asyncio.Event(), False

        async def record_and_send(message: Message) -> None:
            nonlocal has_ended
            await send(message)
            is_stream_start = message["type"] == "http.response.start" and message["status"] == 200
            has_ended = message["type"] == "http.response.body" and not message.get("more_body")
            if is_stream_start:
                is_stream.set()

        response = asyncio.create_task(self.app(scope, receive, record_and_send))
        started = asyncio.create_task(is_stream.wait())
        await asyncio.wait({response, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        await asyncio.wait({response}, timeout=STREAM_SECONDS)
        if response.done():
            response.result()
            return
        response.cancel()
        await asyncio.wait({response})
        if not has_ended:
            await send({"type": "http.response.body", "body": b""})
