"""/docs, /llms.txt, /openapi.json and /job.schema.json, without a key unless a setting closes them.

/docs is the site that `make docs` writes into app/site, /docs/api-explorer/ every operation with a form to send it. The
explorer is self-contained: it includes its style and script, and its content security policy allows connections to this
server only. Its content is that of the site's reference, which tools.docs writes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from jinja2 import Environment
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

import app as package
from app.api.openapi import request_examples, schema_text
from app.domain.jobs.create_job import CreateJob

TEMPLATE, STYLE, SCRIPT = (Path(__file__).with_name(name) for name in ("docs.html", "docs.css", "docs.js"))
MAX_OPEN_FIELDS = 12  # a longer table is collapsed until a click
DIALECT = "https://json-schema.org/draft/2020-12/schema"
HEADERS = {"Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
SITE = Path(package.__file__).with_name("site")
EXPLORER = "api-explorer/"
LINK_OF_LIST = re.compile(r"\]\((?=\S+\.md\))")

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
def openapi_document(request: Request) -> JSONResponse:
    return JSONResponse(_document(request.app))


@router.get("/job.schema.json")
def job_schema() -> JSONResponse:
    """The create body of a job, for editors of job files."""
    return JSONResponse({"$schema": DIALECT} | CreateJob.model_json_schema())


@router.get("/docs")
def docs() -> RedirectResponse:
    return RedirectResponse("docs/")


@router.get(f"/docs/{EXPLORER}")
def api_explorer(request: Request) -> HTMLResponse:
    style, script = STYLE.read_text(encoding="utf-8"), SCRIPT.read_text(encoding="utf-8")
    headers = HEADERS | {"Content-Security-Policy": _policy(style, script)}
    return HTMLResponse(explorer(_document(request.app)), headers=headers)


@router.get("/docs/{path:path}")
async def site_page(path: str, request: Request) -> Response:
    """A file of the site. Where the site was not built, every path leads to the explorer, which says so."""
    if not SITE.is_dir():
        return RedirectResponse("../" * path.count("/") + EXPLORER)
    return await _file(path, request)


@router.get("/llms.txt")
def llms_txt(request: Request) -> PlainTextResponse:
    """The list of the pages, by llmstxt.org, with absolute links."""
    path = SITE / "llms.txt"
    if not path.is_file():
        raise HTTPException(404)
    text = LINK_OF_LIST.sub(f"]({request.base_url}docs/", path.read_text(encoding="utf-8"))
    return PlainTextResponse(text, headers=HEADERS)


@router.get("/llms-full.txt")
async def llms_full_txt(request: Request) -> Response:
    return await _file("llms-full.txt", request)


async def _file(path: str, request: Request) -> Response:
    """Raises HTTPException for a path without a file, as for one that leaves the site."""
    files = StaticFiles(directory=SITE, html=True, check_dir=False)
    response = await files.get_response(os.path.normpath(path), request.scope)
    response.headers.update(HEADERS | {"Content-Security-Policy": "frame-ancestors 'none'"})
    return response


def explorer(document: dict[str, Any], can_send: bool = True) -> str:
    """Every operation with its parameters, body and response, and a form to send it unless this is a published copy."""
    style, script = STYLE.read_text(encoding="utf-8"), SCRIPT.read_text(encoding="utf-8")
    setup = {"sh": request_examples.SETUP_SH, "python": request_examples.SETUP_PYTHON}
    return str(
        _template().render(
            info=document["info"],
            groups=_groups(document),
            setup=setup,
            style=style,
            script=script,
            can_send=can_send,
            has_site=SITE.is_dir() or not can_send,
        )
    )


def _policy(style: str, script: str) -> str:
    """A content security policy with hashes instead of 'unsafe-inline': a script in a description would not run."""
    return (
        f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, built once: the routes do not change."""
    if app.openapi_schema is None:
        app.openapi_schema = app.openapi()
    return app.openapi_schema


@lru_cache(maxsize=1)
def _template() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["type_name"] = schema_text.type_name
    environment.filters["markdown"] = _markdown
    environment.globals["max_open_fields"] = MAX_OPEN_FIELDS
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _groups(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """{tag: operations}, each as the template shows it."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            groups[(operation.get("tags") or ["Others"])[0]].append(_operation(method, path, operation, document))
    return dict(groups)


def _operation(method: str, path: str, operation: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    request = request_examples.example_request(method, path, operation, document)
    values = iter(request.values)
    path_values = {name: next(values) for name in request_examples.PARAMETER.findall(path)}
    parameters = [each | {"value": path_values.get(each["name"], "")} for each in operation.get("parameters", ())]
    return {
        "id": operation["operationId"],
        "method": method,
        "path": path.replace(":path}", "}"),
        "summary": operation["summary"],
        "description": operation.get("description", ""),
        "parameters": parameters,
        "body": _body(request, operation, document),
        "curl": request_examples.curl(request),
        "python": request_examples.python(request),
        "responses": operation["responses"],
        "example": _example(operation),
        "response_fields": _response_fields(operation, document),
        "is_open": request.is_open,
    }


def _body(
    request: request_examples.ExampleRequest, operation: dict[str, Any], document: dict[str, Any]
) -> dict[str, Any] | None:
    if request.media_type is None:
        return None
    schema = schema_text.inner_object(operation["requestBody"]["content"][request.media_type]["schema"], document)
    return {
        "media_type": request.media_type,
        "fields": schema_text.fields(schema, document) if schema else [],
        "names": list((schema or {}).get("properties", {})),
        "files": request.files,
        "example": request.body if isinstance(request.body, dict) else {},
        "text": request_examples.json_text(request.body) if request.media_type == request_examples.JSON else None,
    }


def _example(operation: dict[str, Any]) -> str | None:
    for content in operation["responses"].get("200", {}).get("content", {}).values():
        example = content.get("example")
        return example if isinstance(example, str) else request_examples.json_text(example)
    return None


def _response_fields(operation: dict[str, Any], document: dict[str, Any]) -> list[schema_text.FieldRow]:
    schema = operation["responses"].get("200", {}).get("content", {}).get(request_examples.JSON, {}).get("schema", {})
    inner = schema_text.inner_object(schema, document)
    return schema_text.fields(inner, document) if inner else []


def _markdown(text: str) -> Markup:
    """Render Markdown; descriptions only use paragraphs and `code`."""
    paragraphs = str(escape(text)).replace("\n\n", "<br><br>")
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", paragraphs))
