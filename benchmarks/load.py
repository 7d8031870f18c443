"""A load generator with little overhead: 64 sockets, one thread, prepared requests.

It shares the machine with what it measures, so it does the same for every server: it finds the end of an answer, notes
its status and its time, and sends the next request. Bodies are not parsed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

NO_BODY = (204, 304)


@dataclass
class Load:
    """The result of a run. `seconds` is the time from the first request to the last response."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile_ms(self, share: float) -> float:
        return 1e3 * sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    def only(self, *statuses: int) -> Load:
        """Return itself. Raises AssertionError if a response has another status: errors are no throughput."""
        assert set(self.statuses) <= set(statuses), f"answers were {dict(self.statuses)}"
        return self


def request(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    sent = {"Host": "bench", **headers} | ({"Content-Length": str(len(body))} if body else {})
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def drive(port: int, requests: Callable[[int], Iterable[bytes]], connections: int, seconds: float = 1e9) -> Load:
    """Send `requests(connection)` in sequence over each connection, until they end or the time is over."""
    return asyncio.run(_drive(port, requests, connections, seconds))


async def _drive(port: int, requests: Callable[[int], Iterable[bytes]], connections: int, seconds: float) -> Load:
    load, loop = Load(), asyncio.get_running_loop()
    began = time.perf_counter()
    clients = [_Client(iter(requests(number)), load, began + seconds) for number in range(connections)]
    for client in clients:
        await loop.create_connection(lambda mine=client: mine, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*(client.over for client in clients))
    load.seconds = time.perf_counter() - began
    return load


class _Client(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], load: Load, until: float) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests, self._load, self._until = requests, load, until
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, mark, body = self._received.partition(b"\r\n\r\n")
        if not mark:
            return
        status = int(head[9:12])
        if status not in NO_BODY and len(body) < _content_length(head):
            return
        self._received = b""
        self._load.latencies.append(time.perf_counter() - self._sent_at)
        self._load.statuses[status] += 1
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(error or ConnectionError("the server hung up"))

    def _send(self) -> None:
        message = next(self._requests, None) if time.perf_counter() < self._until else None
        if message is None:
            self.over.set_result(None)
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(message)


def _content_length(head: bytes) -> int:
    lower = head.lower()
    start = lower.index(b"\r\ncontent-length:") + len(b"\r\ncontent-length:")
    return int(lower[start:].split(b"\r\n", 1)[0])
