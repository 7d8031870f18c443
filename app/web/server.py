"""The application of the dashboard: screens, sign-in, uploads, downloads, security headers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import nicegui
from fastapi import FastAPI
from nicegui import core, ui
from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

import app.web.pages  # noqa: F401  (registers the screens)
from app.settings import WebSettings
from app.web import sign_in, transfers
from app.web.api_client import make_http
from app.web.dropped_tables import TableStore
from app.web.frame import SCREENS, add_screen
from app.web.sessions import SessionStore

STATIC = Path(__file__).parent / "static"
RECONNECT_SECONDS = 20.0  # a browser on a slow network keeps its page for so long without a connection
COMPRESSION_LEVEL = 6  # 9 takes twice as long for one percent
# NiceGUI compiles templates in the browser, which needs eval; nothing is loaded from another host. Web sockets are
# named with the host, as not every browser counts them to 'self'.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'{sockets}; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
NOT_FOUND = (STATIC / "not_found.html").read_text(encoding="utf-8")
HOST = re.compile(r"[A-Za-z0-9.\-]{1,255}(:\d{1,5})?|\[[0-9A-Fa-f:.]{1,45}\](:\d{1,5})?")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def create_app(settings: WebSettings) -> FastAPI:
    """Build the dashboard. It starts while the API is down, and its pages report that.

    NiceGUI keeps its pages in the process, so a process has one dashboard.
    """
    http, streams = make_http(settings.api_url), make_http(settings.api_url, max_connections=None)
    tables = TableStore(settings.max_file_bytes)
    sessions = SessionStore(http, streams, settings.session_seconds, tables.discard_of)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(sessions.check_keys()), asyncio.create_task(tables.forget_old())]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await http.aclose()
        await streams.aclose()
        tables.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.sessions, app.state.tables = sessions, tables
    app.add_middleware(SecurityHeadersMiddleware)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.include_router(sign_in.routes)
    app.include_router(transfers.routes)
    for kind in transfers.REFUSALS:
        app.add_exception_handler(kind, transfers.refuse)

    @app.get("/")
    async def home() -> RedirectResponse:
        return RedirectResponse("/jobs", 303)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    for one in sorted(SCREENS, key=lambda one: "{" in one.path):  # /jobs/new precedes /jobs/{job_id}
        add_screen(one, sessions, settings, tables)
    _configure_nicegui(app)
    return app


async def _not_found(_request: Request, _error: Exception) -> Response:
    return HTMLResponse(NOT_FOUND, 404)


def _configure_nicegui(app: FastAPI) -> None:
    core.app.add_exception_handler(404, _not_found)
    core.sio.eio.cors_allowed_origins = None  # only pages of the same origin may connect; NiceGUI allows every site

    ui.add_head_html(
        '<link rel="stylesheet" href="/static/theme.css"><script src="/static/head.js"></script>', shared=True
    )
    ui.run_with(
        app,
        title="Tunery",
        favicon=STATIC / "logo.svg",
        dark=None,
        language="en-US",
        reconnect_timeout=RECONNECT_SECONDS,
        tailwind=False,
        show_welcome_message=False,
        gzip_middleware_factory=CompressOnceMiddleware,  # type: ignore[arg-type]  # called with the application only
    )


class SecurityHeadersMiddleware:
    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _content_security_policy(scope).encode())
                message["headers"] = [*message["headers"], *SECURITY_HEADERS, policy]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def _content_security_policy(scope: Scope) -> str:
    host = Headers(scope=scope).get("host", "")
    return CONTENT_SECURITY_POLICY.format(sockets=f" ws://{host} wss://{host}" if HOST.fullmatch(host) else "")


class CompressOnceMiddleware:
    """Compresses responses; a file of NiceGUI, which changes only with its version, once for all browsers.

    ECharts alone costs 0.1 s of processor time, for which every other page waits.
    """

    FILES = f"/_nicegui/{nicegui.__version__}/"

    def __init__(self, app: Any) -> None:
        self._compress = GZipMiddleware(app, minimum_size=1_000, compresslevel=COMPRESSION_LEVEL)
        self._kept: dict[str, list[MutableMapping[str, Any]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_file(scope):
            await self._compress(scope, receive, send)
            return
        messages = self._kept.get(scope["path"], [])
        if not messages:

            async def keep(message: MutableMapping[str, Any]) -> None:
                messages.append(message)

            await self._compress(scope, receive, keep)
            if messages[0]["status"] == 200:
                self._kept[scope["path"]] = messages
        for message in messages:
            await send(message)

    def _is_file(self, scope: Scope) -> bool:
        """Whether the request is for a whole file, compressed."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(self.FILES):
            return False
        headers = Headers(scope=scope)
        is_whole = not {"range", "if-none-match", "if-modified-since"}.intersection(headers)
        is_dynamic = scope["path"].startswith(f"{self.FILES}dynamic_resources/")
        return is_whole and not is_dynamic and "gzip" in headers.get("accept-encoding", "")
