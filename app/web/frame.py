"""The frame of every screen: navigation, account, mode; the session of its request; errors as messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

from nicegui import background_tasks, ui
from nicegui.elements.mixins.text_element import TextElement
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.domain.access.scopes import allows
from app.log import get_logger
from app.settings import WebSettings
from app.web.api_client import ApiError
from app.web.components.elements import box, button, error_note, link, note, pill, refilled, tag
from app.web.dropped_tables import TableStore
from app.web.sessions import COOKIE, SessionStore, WebSession

BUILD_SECONDS = 35.0  # longer than the timeout of a request to the API
UNEXPECTED = "An error of the dashboard, whose log has its cause. Try again; if it repeats, give the operator the time."
SLOW = f"The API needs more than {BUILD_SECONDS:.0f} s for this page. Try again when it has less to do."
REFRESH_PAUSE_SECONDS = 1.0  # a page refreshes at most this often
THEME_COOKIE = "tunery_theme"
THEMES = {"dark": True, "light": False}
SECTIONS = ("jobs", "datasets", "adapters", "queue", "project")  # the first parts of addresses
LOGO = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 19V9m5 10V5m5 14v-7m5 7V3"/></svg>'
SUN = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="4"/><path d="M12 2v2m0 16v2M4.9 4.9l1.4 1.4'
    'm11.4 11.4 1.4 1.4M2 12h2m16 0h2M4.9 19.1l1.4-1.4m11.4-11.4 1.4-1.4"/></svg>'
)

log = get_logger(__name__)


class View:
    """One open page of a screen: its request, session and settings."""

    banner: TextElement  # of errors, in view wherever the page is scrolled to

    def __init__(self, request: Request, session: WebSession, settings: WebSettings, tables: TableStore) -> None:
        self.request, self.session, self.settings, self.tables = request, session, settings, tables
        self.api = session.api

    async def build(self) -> None:
        raise NotImplementedError

    def may(self, scope: str) -> bool:
        """Whether the key has the scope: what it may not do is not offered."""
        return allows(self.session.project["api_key"]["scopes"], scope)

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def query(self, name: str, default: str = "") -> str:
        return str(self.request.query_params.get(name, default))


class Screen(NamedTuple):
    path: str
    title: str
    view: type[View]


SCREENS: list[Screen] = []


def screen(path: str, title: str) -> Callable[[type[View]], type[View]]:
    """Register a screen; `create_app` gives it its route."""

    def register(view: type[View]) -> type[View]:
        SCREENS.append(Screen(path, title, view))
        return view

    return register


def add_screen(one: Screen, sessions: SessionStore, settings: WebSettings, tables: TableStore) -> None:
    """Route a screen. Without a session its request is redirected to the sign-in form."""

    async def page(request: Request) -> Response | None:
        session = sessions.of(request)
        if session is None:
            target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            reason = "&reason=expired" if COOKIE in request.cookies else ""
            return RedirectResponse(f"/sign-in?next={quote(target, safe='')}{reason}", 303)
        _follow_session(session)
        view = one.view(request, session, settings, tables)
        _header(view, one.path)
        view.banner = box("t-banner")
        ui.on_exception(partial(_show_in_banner, view.banner))
        with tag("main", classes="t-main", id="content", tabindex="-1") as main:
            await _build(one, view, main)
        ui.run_javascript(f"restoreForm({json.dumps(session.project['id'])})")
        return None

    ui.page(one.path, title=f"{one.title} · Tunery", response_timeout=BUILD_SECONDS + 5)(page)


async def _build(one: Screen, view: View, main: TextElement) -> None:
    try:
        async with asyncio.timeout(BUILD_SECONDS):
            await view.build()
    except Exception as error:
        with refilled(main):
            tag("h1", one.title)
            _exception_note(error)
            with box("t-actions"):
                button("Try again", ui.navigate.reload)
                if view.request.url.query and "{" not in one.path:  # such as a filter that the API refuses
                    link("Show all", one.path, "t-button")


def _exception_note(error: Exception) -> TextElement:
    if isinstance(error, ApiError):
        return error_note(error)
    if isinstance(error, TimeoutError):
        return note("The API answers slowly", SLOW, "bad", role="alert")
    log.error("unexpected error of a page", exc_info=error)
    return note("This did not work", UNEXPECTED, "bad", role="alert")


def _show_in_banner(banner: TextElement, error: Exception) -> None:
    """The error of an event on the page: without it the user would not see that the event had no effect."""
    with refilled(banner), _exception_note(error):
        button("Close", banner.clear)


def set_query(path: str, **params: str) -> None:
    """Show the state of the page in its URL, without loading it again."""
    pairs = "&".join(f"{name}={quote(value, safe='')}" for name, value in params.items() if value)
    ui.navigate.history.replace(f"{path}?{pairs}" if pairs else path)


def refresh_live(
    view: View, refresh: Callable[[], Awaitable[object]], job_id: str | None = None, interval_seconds: float = 15.0
) -> None:
    """Call `refresh` after each change of the project's jobs (or of `job_id` alone) and at least every interval,
    until the page is closed. A failed refresh shows a banner until one succeeds.
    """
    client = ui.context.client
    slot = ui.context.slot.parent

    async def follow() -> None:
        with view.session.changes.subscribe() as changes:
            while not client.is_deleted:
                changed = await changes.wait(interval_seconds)
                if client.is_deleted:
                    return
                if job_id is None or not changed or changed & {None, job_id}:
                    try:
                        with slot:
                            await refresh()
                        view.banner.clear()
                    except ApiError as error:
                        _show_in_banner(view.banner, error)
                    except Exception:  # the next refresh may succeed, and the page stays as it was
                        log.exception("refresh of a page failed")
                    await asyncio.sleep(REFRESH_PAUSE_SECONDS)

    task = background_tasks.create(follow(), name="refresh page")
    client.on_delete(lambda: task.cancel())


def _follow_session(session: WebSession) -> None:
    """Send this page to the sign-in form when its session ends."""
    client = ui.context.client

    def leave(reason: str) -> None:
        client.run_javascript(f"signIn('{reason}')")

    session.on_end.add(leave)
    client.on_delete(lambda: session.on_end.discard(leave))


def _header(view: View, path: str) -> None:
    sections = (*SECTIONS, "admin") if view.session.is_admin else SECTIONS
    link("Skip to content", "#content", "t-skip")
    (outer_main,) = (one for one in ui.context.client.elements.values() if one.tag == "q-page")
    outer_main.props["role"] = "none"  # a page has one landmark `main`
    with tag("header", classes="t-header", role="banner"):
        with link("", "/jobs", "t-brand", aria_label="Tunery: jobs"):
            ui.html(LOGO, sanitize=False, tag="span")
            tag("span", "Tunery")
        with tag("nav", classes="t-nav", aria_label="Main"):
            for name in sections:
                link(name.capitalize(), f"/{name}", aria_current="page" if path.startswith(f"/{name}") else None)
        with box("t-account"):
            tag("bdi", view.session.project["name"], title="The project of your API key")
            if not view.may("jobs:write"):
                pill("read only", "wait").props["title"] = "Your key lacks the scope jobs:write"
            _theme_button(view.request.cookies.get(THEME_COOKIE, ""))
            with tag("form", method="post", action="/sign-out"):
                tag("button", "Sign out", "t-small-button", type="submit")


def _theme_button(theme: str) -> None:
    """The browser switches at once; the server must have the mode, too, or its next update restores the old one."""
    mode = ui.dark_mode(THEMES.get(theme))
    with tag("button", classes="t-icon", type="button", aria_label="Switch between light and dark") as element:
        ui.html(SUN, sanitize=False, tag="span")
    element.on(
        "click",
        lambda event: mode.set_value(bool(event.args)),
        js_handler="""() => {
            const dark = !document.body.classList.contains("body--dark");
            setDark(dark);
            keepTheme(dark ? "dark" : "light");
            emit(dark);
        }""",
    )
