"""Those who wait are told when it makes no sense any more: the client has left, or the server is about to."""

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

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def client_gone(request: Request) -> None:
    """Return when the client has hung up. Nobody else may read the request's body any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def closed_when_gone(request: Request, subscription: Subscription) -> AsyncIterator[None]:
    """Close `watch` when the client of a request without a body hangs up."""

    async def look() -> None:
        with suppress(RequestTimeout):  # a body that was announced and does not come
            await client_gone(request)
        subscription.close()

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()


@contextmanager
def told_of_stop(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` in this event loop when the process is asked to stop.

    uvicorn ends the lifespan after the last answer, and a stream is an answer that would never end: so we listen to the
    signals that it listens to, before it, and pass them on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    theirs = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(tell)
        handler = theirs[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    ours = [number for number, handler in theirs.items() if callable(handler)]
    for number in ours:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, theirs[number])
