"""Sign-in and sign-out: an API key for a session cookie. Plain HTML, with a script that only shows a wait."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request
from jinja2 import Environment
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.web.api_client import UNAUTHORIZED, ApiError
from app.web.frame import THEME_COOKIE, THEMES
from app.web.sessions import COOKIE, Sessions

MAX_FORM_BYTES = 64 << 10  # a page's address with its filters, and the key
MAX_KEY_CHARACTERS = 512
HOME = "/jobs"
TEMPLATE = Environment(autoescape=True).from_string(
    (Path(__file__).parent / "static" / "sign_in.html").read_text(encoding="utf-8")
)
routes = APIRouter()
REASONS = {
    "revoked": "You were signed out, because the API does not accept your key any more: it was revoked, has expired, "
    "or its project is archived. Sign in with another key, or ask an administrator for one. This tab keeps what you "
    "entered into a form, for keys of the same project.",
    "expired": "You were signed out: sessions end after some hours, and when the dashboard restarts. Sign in again; "
    "this tab keeps what you entered into a form.",
    "signed-out": "You are signed out. The dashboard has deleted your key.",
}
WRONG_KEY = (
    "The API does not accept this key: it was mistyped, revoked, or has expired. Copy it again as it was printed when "
    "it was created, or create another: `tunery keys create --project NAME`"
)


@routes.get("/sign-in")
async def show_form(request: Request, sessions: Sessions, next: str = HOME, reason: str = "") -> Response:
    if sessions.of(request) is not None and not reason:
        return RedirectResponse(_local_path(next), 303)
    return _form(request, next, 200, message=REASONS.get(reason, ""))


@routes.post("/sign-in")
async def sign_in(request: Request, sessions: Sessions) -> Response:
    if not is_same_origin(request):
        return _form(request, HOME, 403, "The form was sent by another site. Sign in here.")
    form = await _read_form(request)
    next_path = form.get("next", HOME)
    api_key = form.get("api_key", "").strip()
    try:
        if not 0 < len(api_key) <= MAX_KEY_CHARACTERS or not (api_key.isascii() and api_key.isprintable()):
            raise ApiError(WRONG_KEY, UNAUTHORIZED)
        session = await sessions.sign_in(api_key)
    except ApiError as error:
        if error.status == UNAUTHORIZED:
            return _form(request, next_path, 400, WRONG_KEY)
        return _form(request, next_path, error.status or 503, error.message)
    response = RedirectResponse(_local_path(next_path), 303)
    response.set_cookie(
        COOKIE,
        session.token,
        max_age=int(sessions.session_seconds),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@routes.post("/sign-out")
async def sign_out(request: Request, sessions: Sessions) -> Response:
    if is_same_origin(request) and (session := sessions.of(request)) is not None:
        sessions.end(session.token, "signed-out")
    response = RedirectResponse("/sign-in?reason=signed-out", 303)
    response.delete_cookie(COOKIE)
    return response


def is_same_origin(request: Request) -> bool:
    """Whether a form or script of the dashboard itself sent the request. Browsers send Origin with every POST."""
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _form(request: Request, next_path: str, status: int, error: str = "", message: str = "") -> HTMLResponse:
    theme = THEMES.get(request.cookies.get(THEME_COOKIE, ""))
    body_class = "t-plain" if theme is None else "body--dark" if theme else "body--light"
    html = TEMPLATE.render(next_path=_local_path(next_path), message=message, error=error, body_class=body_class)
    return HTMLResponse(html, status, headers={"Cache-Control": "no-store"})


async def _read_form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode("ascii", "replace")).items()}


def _local_path(path: str) -> str:
    """A path of the dashboard; the address of another site is replaced by the home page."""
    parts = urlsplit(path)
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and not parts.netloc and path.isprintable()
    return path if is_local else HOME
