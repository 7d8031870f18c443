"""/openapi.json and /docs, without a key unless a setting closes them. The page is one file: no script, no internet."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from jinja2 import Environment
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, JSONResponse

TEMPLATE = Path(__file__).with_name("docs.html")
STYLE = Path(__file__).with_name("docs.css")

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
def openapi_document(request: Request) -> JSONResponse:
    return JSONResponse(_document(request.app))


@router.get("/docs")
def reference(request: Request) -> HTMLResponse:
    """Every operation with its parameters, body and answer; the style is the one thing the browser may load."""
    style = STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = _template().render(document=_document(request.app), style=style)
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})


def _document(app: FastAPI) -> dict[str, Any]:
    """Built once: the routes do not change."""
    if app.openapi_schema is None:
        app.openapi_schema = app.openapi()
    return app.openapi_schema


@lru_cache(maxsize=1)
def _template() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    environment.filters["type_name"] = _type_name
    environment.filters["prose"] = _prose
    environment.filters["inner_object"] = _inner_object
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _prose(text: str) -> Markup:
    """Descriptions are Markdown, of which they use paragraphs and `code`."""
    paragraphs = str(escape(text)).replace("\n\n", "<br><br>")
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", paragraphs))


def _type_name(schema: dict[str, Any]) -> str:
    """A schema in a few words: `integer 1 to 50`, `"auto" or number`, `FileBody`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_type_name(option) for option in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_name(schema.get('items', {}))}"
    return str(schema.get("type", "any")) + _bounds(schema)


def _inner_object(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any] | None:
    """The object with named properties that a schema is, points to, or may be."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][_type_name(schema)]
    options = schema.get("anyOf", ())
    found = [inner for option in options if (inner := _inner_object(option, document)) is not None]
    return schema if "properties" in schema else next(iter(found), None)


def _bounds(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}",
        "minLength": "from {} characters", "maxLength": "to {} characters",
    }  # fmt: skip
    return "".join(f" {text.format(schema[key])}" for key, text in words.items() if key in schema)
