from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.api.docs_page.page import SITE
from tests.up import ROOT
from tools.docs.site import build


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this checkout: that of `make setup`, or built anew if a source has changed since."""
    built = SITE / "llms.txt"
    if built.exists() and built.stat().st_mtime > max(path.stat().st_mtime for path in sources()):
        return SITE
    directory = tmp_path_factory.mktemp("docs") / "site"
    build(directory)
    return directory


def sources() -> Iterator[Path]:
    for folder in ("docs", "skills", "tools/docs", "app"):
        for path in (ROOT / folder).rglob("*.*"):
            if SITE not in path.parents and "__pycache__" not in path.parts:
                yield path
