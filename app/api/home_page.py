"""`/` in a browser: a page that leads to the dashboard. Programs get the 404 of every unknown URL."""

from __future__ import annotations

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tunery</title><style>:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1rem }}</style></head>
<body><h1>Tunery</h1><p>This is the address of the API, for programs.</p>
<p><a href="{web_url}">Open the dashboard</a>{docs}</p></body></html>
"""
DOCS = ' or <a href="/docs/">the documentation</a>'


def home_page(request: Request) -> Response | None:
    """The page for a browser at `/`; None for other requests, and without a dashboard."""
    settings = request.app.state.app_state.settings
    is_browser = request.method == "GET" and "text/html" in request.headers.get("accept", "")
    if request.url.path != "/" or not is_browser or settings.web_url is None:
        return None
    return HTMLResponse(
        PAGE.format(web_url=escape(settings.web_url), docs=DOCS if settings.docs_enabled else ""),
        headers={"Cache-Control": "no-store", "Vary": "Accept"},
    )
