"""The generated pages of the reference: operations and objects of the API, commands, errors."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.main import create_app
from app.settings import Settings
from tools.docs.api_pages import pages
from tools.docs.commands_page import commands_page
from tools.docs.errors_page import errors_page


def reference() -> dict[str, str]:
    """{path below docs/: text} of every generated page."""
    api = {f"reference/api/{name}": text for name, text in pages(document()).items()}
    return api | {"reference/commands.md": commands_page(), "reference/errors.md": errors_page()}


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The OpenAPI document. It requires neither a database nor a broker."""
    with tempfile.TemporaryDirectory() as data_dir:
        settings = Settings(database_url="postgresql://unused/x", redis_url="redis://unused", data_dir=Path(data_dir))
        return create_app(settings).openapi()
