from __future__ import annotations

from pathlib import Path

import pytest

from tools.docs.site import build


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this checkout, built anew."""
    directory = tmp_path_factory.mktemp("docs") / "site"
    build(directory)
    return directory
