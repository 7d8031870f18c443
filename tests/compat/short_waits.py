"""`python short_waits.py CHECKOUT DOCUMENT --fd N`: today's API, for generated requests.

Its event streams and long polls end after a moment, and /openapi.json is the earlier document, from which requests are
generated and to which responses are held.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any
from urllib.parse import unquote_to_bytes

import uvicorn
from starlette.responses import FileResponse

WAIT = re.compile(rb"(?<![^&])wait=([^&]*)")
SHORT_SECONDS = 0.1


def shortened(query: bytes) -> bytes:
    """The query with every valid `wait` of more than a moment replaced."""
    return WAIT.sub(lambda found: b"wait=%g" % SHORT_SECONDS if _is_long(found[1]) else found[0], query)


def _is_long(wait: bytes) -> bool:
    try:
        return SHORT_SECONDS < float(unquote_to_bytes(wait)) < math.inf
    except ValueError:
        return False


class ShortWaits:
    def __init__(self, app: Any, document: str) -> None:
        self.app = app
        self.document = FileResponse(document, media_type="application/json")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["query_string"] = shortened(scope["query_string"])
        app = self.document if scope.get("path") == "/openapi.json" else self.app
        await app(scope, receive, send)


def application() -> Any:
    from tests.schema.brief import BriefStreams  # the earlier one

    from app.main import app_from_environment

    return ShortWaits(BriefStreams(app_from_environment()), sys.argv[2])


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    uvicorn.run(application, factory=True, fd=int(sys.argv[4]), ws="none", log_config=None)
