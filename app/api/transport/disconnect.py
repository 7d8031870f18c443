"""Ends long polls and streams when the client disconnects or the server shuts down."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType

from fastapi import Request

from app.db.notifications import Subscription
from app.errors import RequestTimeout

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
