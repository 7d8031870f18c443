"""Ends long polls and streams when the client disconnects or the server shuts down."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.db.notifications import Subscription
from app.errors import RequestTimeout

Result = TypeVar("Result")
SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client has disconnected. Nothing else may read the request's body afterwards."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def close_on_disconnect(request: Request, subscription: Subscription) -> AsyncIterator[None]:
    """Close `subscription` when the client of a request without a body disconnects."""

    async def close_after_disconnect() -> None:
        with suppress(RequestTimeout):  # an announced body that never arrives
            await wait_for_disconnect(request)
        subscription.close()

    task = asyncio.create_task(close_after_disconnect())
    try:
        yield
    finally:
        task.cancel()


async def run_until_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, which is cancelled when the client disconnects. The body must have been read.

    Raises ClientDisconnect, or the RequestTimeout of a client that did not send all of its body.
    """
    return await _first_of(wait_for_disconnect(request), work)


class CancelledStream(StreamingResponse):
    """A stream whose iterator is closed at once when the client disconnects, also while it has nothing to send.

    Starlette's own class notices a disconnect only when it sends the next chunk.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await _first_of(self.listen_for_disconnect(receive), self.stream_response(send))
        except OSError as error:  # the server refuses to send to a client that has disconnected
            raise ClientDisconnect from error
        finally:
            await self.body_iterator.aclose()  # type: ignore[attr-defined]


async def _first_of(disconnect: Coroutine[Any, Any, None], work: Coroutine[Any, Any, Result]) -> Result:
    tasks = asyncio.create_task(disconnect), asyncio.create_task(work)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[1].done():
            raise tasks[0].exception() or ClientDisconnect()
        return tasks[1].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def on_shutdown_signal(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` in this event loop when the process receives SIGTERM or SIGINT.

    uvicorn ends the lifespan after the last response, and a stream is a response without an end. So these handlers run
    before uvicorn's own handlers, and then call them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous_handlers = {number: signal.getsignal(number) for number in SHUTDOWN_SIGNALS}

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        handler = previous_handlers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    replaced = [number for number, handler in previous_handlers.items() if callable(handler)]
    for number in replaced:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, previous_handlers[number])
