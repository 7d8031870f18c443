"""Bootstrap guard: until an API key exists, the service accepts loopback connections only.

The configured bind address is checked at startup. Only the server has the address that it actually bound, so the
local address of each connection is checked as well, until a key exists.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.error_handlers import error_response
from app.db.engine import Sessions, transaction
from app.errors import NotBootstrapped, Unavailable
from app.log import get_logger
from app.services.access import keys

DEFAULT_HOST = "127.0.0.1"  # uvicorn's default

log = get_logger(__name__)


def bind_host(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """The bind address in uvicorn's command line, else in its environment, else its default."""
    host = environment.get("UVICORN_HOST", DEFAULT_HOST)
    for position, argument in enumerate(arguments):
        if argument == "--host":
            host = "".join(arguments[position + 1 : position + 2])
        elif argument.startswith("--host="):
            host = argument.removeprefix("--host=")
    return host


def require_api_key(sessions: Sessions, host: str) -> None:
    """Raises NotBootstrapped if `host` is not loopback and no API key exists.

    An unreachable database does not stop the start: `RequireApiKeyMiddleware` checks again before every request.
    """
    if is_loopback(host):
        return
    try:
        is_bootstrapped = has_key(sessions)
    except SQLAlchemyError as error:
        log.warning("could not check for an API key before listening", host=host, reason=str(error))
        return
    if not is_bootstrapped:
        raise _not_bootstrapped_error(host)


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


class RequireApiKeyMiddleware:
    """Plain ASGI middleware: 503 for remote requests until an API key exists. Afterwards it reads nothing."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self.app = app
        self._sessions = sessions
        self._is_bootstrapped = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_bootstrapped or _arrived_on_loopback(scope):
            await self.app(scope, receive, send)
            return
        try:
            self._is_bootstrapped = await run_in_threadpool(has_key, self._sessions)
        except SQLAlchemyError:
            refusal = Unavailable("PostgreSQL does not answer; try again in a few seconds.")
            await error_response(refusal)(scope, receive, send)
            return
        respond = self.app if self._is_bootstrapped else error_response(_not_bootstrapped_error(scope["server"][0]))
        await respond(scope, receive, send)


def _arrived_on_loopback(scope: Scope) -> bool:
    """Whether the local address of the connection, which no client can choose, is loopback. A Unix socket has none."""
    server = scope.get("server")
    return server is None or server[1] is None or is_local(server[0])


@lru_cache(maxsize=1024)
def is_local(address: str) -> bool:
    """Whether it is loopback, or no network address, as in a test client."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return True
    return is_loopback(address)


def _not_bootstrapped_error(host: str) -> NotBootstrapped:
    return NotBootstrapped(
        f"No API key exists yet, so this service accepts connections from its own machine only, not at "
        f"{host or 'any address'}. Create a key first (`tunery keys create --database --project default --scope all "
        "--scope admin`), or set TUNERY_ADMIN_KEY_FILE."
    )
