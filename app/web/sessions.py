"""Signed-in browsers: an opaque id in a cookie; the API key stays in the memory of this process."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx2
from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from app.log import get_logger
from app.web.api_client import ApiClient, ApiError
from app.web.api_streams import ChangeFeed

COOKIE = "tunery_session"
KEY_CHECK_SECONDS = 20.0  # a revoked key loses its sessions within a minute
PARALLEL_CHECKS = 20  # of keys
MAX_SESSIONS = 10_000

log = get_logger(__name__)


@dataclass(eq=False, repr=False)
class WebSession:
    """One signed-in browser. `project` is the response of GET /v1/project."""

    token: str
    api: ApiClient
    changes: ChangeFeed
    project: dict[str, Any]
    expires_at: float  # of time.monotonic
    on_end: set[Callable[[str], None]] = field(default_factory=set)  # called with the reason
    kept: dict[str, Any] = field(default_factory=dict)  # objects of screens, by name, between visits

    @property
    def is_admin(self) -> bool:
        return "admin" in self.project["api_key"]["scopes"]


class SessionStore:
    """`on_end` gets the token of each session that ends."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        streams: httpx2.AsyncClient,
        session_seconds: float,
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._http = http
        self._streams = streams
        self._on_end = on_end
        self.session_seconds = session_seconds
        self._sessions: dict[str, WebSession] = {}

    async def sign_in(self, api_key: str) -> WebSession:
        """A new session of a key that the API accepts. Raises ApiError."""
        token = secrets.token_urlsafe(32)
        api = ApiClient(self._http, api_key, lambda: self.end(token, "revoked"), self._streams)
        project = await api.get("project")
        while len(self._sessions) >= MAX_SESSIONS:
            self.end(next(iter(self._sessions)), "expired")
        session = WebSession(token, api, ChangeFeed(api), project, time.monotonic() + self.session_seconds)
        self._sessions[token] = session
        return session

    def of(self, connection: HTTPConnection) -> WebSession | None:
        """The session of a request; None without a valid cookie."""
        session = self._sessions.get(connection.cookies.get(COOKIE, ""))
        if session is not None and time.monotonic() > session.expires_at:
            self.end(session.token, "expired")
            return None
        return session

    def end(self, token: str, reason: str) -> None:
        """Forget the key and send the session's pages to the sign-in form, which explains `reason`."""
        session = self._sessions.pop(token, None)
        if session is None:
            return
        log.info("session ended", reason=reason, key_id=session.project["api_key"]["id"])
        session.api.forget_key()
        self._on_end(token)
        for callback in list(session.on_end):
            callback(reason)

    async def check_keys(self) -> None:
        """End expired sessions, and those whose key the API does not accept any more, until cancelled."""
        while True:
            await asyncio.sleep(KEY_CHECK_SECONDS)
            try:
                await self.check_all_keys()
            except Exception:  # the next round may succeed, and without it a revoked key would keep its sessions
                log.exception("check of keys failed")

    async def check_all_keys(self) -> None:
        sessions = list(self._sessions.values())
        for start in range(0, len(sessions), PARALLEL_CHECKS):
            checks = (self._is_reachable(session) for session in sessions[start : start + PARALLEL_CHECKS])
            if not all(await asyncio.gather(*checks)):
                return  # each further request would wait for its timeout; an unreachable API ends no session

    async def _is_reachable(self, session: WebSession) -> bool:
        """End the session if it has expired or its key is refused. False if the API does not answer."""
        if time.monotonic() > session.expires_at:
            self.end(session.token, "expired")
            return True
        try:
            session.project = await session.api.get("project")
        except ApiError as error:  # a 401 has ended the session
            log.debug("key not checked", status=error.status)
            return not error.is_unreachable
        return True


def _store(request: Request) -> SessionStore:
    store: SessionStore = request.app.state.sessions
    return store


Sessions = Annotated[SessionStore, Depends(_store)]  # an argument of a route
