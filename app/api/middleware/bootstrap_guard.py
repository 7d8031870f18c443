"""Without a key in the database nobody but this machine may come in.

Where we are told to listen is known at the start, and refused there. Where a server really listens is known to it
alone, so the address at which each connection arrived is looked at as well, until there is a key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.error_handlers import error_response
from app.db.access import keys
from app.db.engine import Sessions, transaction
from app.errors import NoKeyYet, Unavailable
from app.log import get_logger

DEFAULT_HOST = "127.0.0.1"  # uvicorn's

log = get_logger(__name__)


def asked_host(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Where uvicorn's command line and environment tell it to listen."""
    host = environment.get("UVICORN_HOST", DEFAULT_HOST)
    for position, argument in enumerate(arguments):
        if argument == "--host":
            host = "".join(arguments[position + 1 : position + 2])
        elif argument.startswith("--host="):
            host = argument.removeprefix("--host=")
    return host


def refuse_without_key(sessions: Sessions, host: str) -> None:
    """Raises NoKeyYet. A database that is away refuses nothing here: `Door` asks it again, before every request."""
    if is_loopback(host):
        return
    try:
        known = has_key(sessions)
    except SQLAlchemyError as error:
        log.warning("could not look for a key before listening", host=host, reason=str(error))
        return
    if not known:
        raise _no_key(host)


def has_key(sessions: Sessions) -> bool:
    with transaction(sessions) as session:
        return keys.has_usable_key(session)


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class Door:
    """Plain ASGI; once a key was seen, it costs nothing more."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self.app = app
        self._sessions = sessions
        self._is_open = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open or _came_from_here(scope):
            await self.app(scope, receive, send)
            return
        try:
            self._is_open = await run_in_threadpool(has_key, self._sessions)
        except SQLAlchemyError:
            refusal = Unavailable("PostgreSQL does not answer; try again in a few seconds.")
            await error_response(refusal)(scope, receive, send)
            return
        answer = self.app if self._is_open else error_response(_no_key(scope["server"][0]))
        await answer(scope, receive, send)


def _came_from_here(scope: Scope) -> bool:
    """By the address of our end of the connection, which no client can choose; a Unix socket has none."""
    server = scope.get("server")
    if server is None or server[1] is None:
        return True
    try:
        ipaddress.ip_address(server[0])
    except ValueError:
        return True  # not a server that listens on a network: a test's client, for one
    return is_loopback(server[0])


def _no_key(host: str) -> NoKeyYet:
    return NoKeyYet(
        f"There is no API key yet, so this service is open to its own machine only, not at {host or 'any address'}. "
        "Create one first (`tunery keys create --project default --scope all --scope admin`), or set "
        "TUNERY_ADMIN_KEY_FILE."
    )
