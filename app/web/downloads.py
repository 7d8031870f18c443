"""Downloads through the dashboard: the browser has no API key, so this process streams the API's response to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from app.web.api_client import ApiError
from app.web.sessions import SessionStore

ObjectId = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,100}$")]
KEPT_HEADERS = ("content-length", "content-range", "etag", "content-digest", "accept-ranges")
CHUNK_BYTES = 1 << 18


def router(sessions: SessionStore) -> APIRouter:
    routes = APIRouter()

    @routes.get("/files/{file_id}/content")
    async def file_content(request: Request, file_id: ObjectId) -> Response:
        return await _download(sessions, request, file_id, "files/{id}/content", None)

    @routes.get("/jobs/{job_id}/metrics.csv")
    async def metrics(request: Request, job_id: ObjectId) -> Response:
        return await _download(
            sessions, request, job_id, "fine_tuning/jobs/{id}/metrics?format=csv", f"{job_id}-metrics.csv"
        )

    @routes.get("/jobs/{job_id}/log.txt")
    async def log(
        request: Request, job_id: ObjectId, attempt: int | None = None, number: int | None = None
    ) -> Response:
        """`number` is that of the attempt among the trainings, as the pages count."""
        query, name = (f"?attempt={attempt}", f"-attempt-{number}") if attempt is not None else ("", "")
        path = f"fine_tuning/jobs/{{id}}/logs{query}"
        return await _download(sessions, request, job_id, path, f"{job_id}-log{name}.txt")

    @routes.get("/jobs/{job_id}/adapter.tar")
    async def adapter(request: Request, job_id: ObjectId) -> Response:
        return await _download(
            sessions, request, job_id, "fine_tuning/jobs/{id}/adapter/archive", f"{job_id}-adapter.tar"
        )

    return routes


async def _download(
    sessions: SessionStore, request: Request, object_id: str, path: str, filename: str | None
) -> Response:
    """The content of an API path as an attachment, with byte ranges. `filename` None: that of the file."""
    session = sessions.of(request)
    if session is None:
        return RedirectResponse("/sign-in?reason=expired", 303)
    resources = AsyncExitStack()
    try:
        filename = filename or str((await session.api.get(f"files/{object_id}"))["filename"])
        headers = {"accept-encoding": "identity"}  # the bytes are passed on as they are
        headers |= {"range": request.headers["range"]} if "range" in request.headers else {}
        upstream = await resources.enter_async_context(
            session.api.stream("GET", path.replace("{id}", object_id), headers=headers)
        )
    except ApiError as error:
        return Response(error.message, error.status or 503, media_type="text/plain; charset=utf-8")

    async def content() -> AsyncIterator[bytes]:
        async with resources:
            async for chunk in upstream.aiter_raw(CHUNK_BYTES):
                yield chunk

    return StreamingResponse(
        content(), upstream.status_code, _headers(upstream.headers, filename), "application/octet-stream"
    )


def _headers(upstream: Mapping[str, str], filename: str) -> dict[str, str]:
    kept = {name: upstream[name] for name in KEPT_HEADERS if name in upstream}
    return kept | {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}",
        "Cache-Control": "private, no-store",
    }
