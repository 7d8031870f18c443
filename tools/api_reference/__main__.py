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
    written = reference()
    (directory / "reference").mkdir(parents=True, exist_ok=True)
    for old in set(_written_before(directory)) - written.keys():
        (directory / old).unlink()
    for name, text in written.items():
        (directory / name).write_text(text, encoding="utf-8")
    print(f"{len(written)} pages in {directory}")


def reference() -> dict[str, str]:
    """{name under docs/: text} of every generated page."""
    return {f"reference/{name}": text for name, text in pages(document()).items()} | {"errors.md": errors_page()}


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The OpenAPI document; it needs no server."""
    with tempfile.TemporaryDirectory() as data_dir:
        nowhere = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere", data_dir=Path(data_dir))
        return create_app(nowhere).openapi()


def _written_before(directory: Path) -> list[str]:
    return [f"reference/{path.name}" for path in (directory / "reference").glob("*.md")]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
