"""Which addresses the service listens on: beyond loopback only behind a proxy, and only when an API key exists.

The configured bind address is checked at startup. Only the server has the address that it actually bound, so the
local address of each connection is checked as well, until a key exists.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from app.db.engine import Sessions, transaction
from app.errors import NotBootstrapped, TuneryError, Unavailable
from app.log import get_logger
from app.services.access import keys
from app.settings import Settings

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

    An unreachable database does not stop the start: `BootstrapGuard` checks again before every request.
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


def require_proxy(settings: Settings, host: str) -> None:
    """Raises SystemExit for an address that is not loopback without TUNERY_BEHIND_PROXY."""
    if not is_loopback(host) and not settings.behind_proxy:
        raise SystemExit(
            f"The API does not listen on {host or 'any address'} by itself: it limits neither the size of request "
            "headers nor their time. Put a proxy in front that does (examples/tls-proxy/nginx.conf; "
            "docs/operate/deploy.md#slow-clients) and set TUNERY_BEHIND_PROXY=true, or listen on 127.0.0.1."
        )


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


class BootstrapGuard:
    """Refuses remote requests until an API key exists. Afterwards it reads nothing."""

    def __init__(self) -> None:
        self._is_bootstrapped = False

    async def problem(self, scope: Scope) -> TuneryError | None:
        """The error of this request, or None."""
        if self._is_bootstrapped or _arrived_on_loopback(scope):
            return None
        try:
            self._is_bootstrapped = await run_in_threadpool(has_key, scope["app"].state.app_state.sessions)
        except SQLAlchemyError:
            return Unavailable("PostgreSQL does not answer; try again in a few seconds.")
        return None if self._is_bootstrapped else _not_bootstrapped_error(scope["server"][0])


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
