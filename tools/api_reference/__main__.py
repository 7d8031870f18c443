"""`python -m tools.api_reference [DIRECTORY]`: write the reference into docs/, or into another directory."""

from __future__ import annotations

import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.main import create_app
from app.settings import Settings
from tools.api_reference.errors_page import errors_page
from tools.api_reference.pages import pages

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main(directory: Path = DOCS) -> None:
    pages_by_name = reference()
    operations = directory / "reference" / "api"
    operations.mkdir(parents=True, exist_ok=True)
    for path in operations.glob("*.md"):
        path.unlink()
    for name, text in pages_by_name.items():
        (directory / name).write_text(text, encoding="utf-8")
    print(f"{len(pages_by_name)} pages in {directory}")


def reference() -> dict[str, str]:
    """{name under docs/: text} of every generated page."""
    return {f"reference/api/{name}": text for name, text in pages(document()).items()} | {
        "reference/errors.md": errors_page()
    }


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The OpenAPI document. It requires neither a database nor a broker."""
    with tempfile.TemporaryDirectory() as data_dir:
        settings = Settings(database_url="postgresql://unused/x", redis_url="redis://unused", data_dir=Path(data_dir))
        return create_app(settings).openapi()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
