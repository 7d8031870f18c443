"""For requests that would otherwise be answered when something happens: here nothing does, so they end soon."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

STREAM_SECONDS = 0.1
WAIT_SECONDS = 0.1


class BriefStreams:
    """Server-sent events that would go on are ended after a moment, as when the server stops."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/stream"):
            await self.app(scope, receive, send)
            return
        is_stream, has_ended = asyncio.Event(), False

        async def note(message: Message) -> None:
            nonlocal has_ended
            await send(message)
            is_stream_start = message["type"] == "http.response.start" and message["status"] == 200
            has_ended = message["type"] == "http.response.body" and not message.get("more_body")
            if is_stream_start:
                is_stream.set()

        answer = asyncio.create_task(self.app(scope, receive, note))
        begun = asyncio.create_task(is_stream.wait())
        await asyncio.wait({answer, begun}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        await asyncio.wait({answer}, timeout=STREAM_SECONDS)
        if answer.done():
            answer.result()
            return
        answer.cancel()
        await asyncio.wait({answer})
        if not has_ended:
            await send({"type": "http.response.body", "body": b""})
