"""The wheel has the documentation's site, as data of the package `app` and not as packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.release import ROOT

FILES = (
    "index.html",
    "llms.txt",
    "guides/waiting.md",
    "guides/waiting/index.html",
    "assets/app.js",
    "screenshots/job.png",
)


@pytest.mark.extended("setuptools packs every module")
def test_the_wheel_has_every_file_of_the_site(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("site", "__pycache__")
    for name in ("app", "worker", "migrations"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in FILES:
        (source / "app" / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "app" / "site" / name).write_text(name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("tunery-*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert {f"app/site/{name}" for name in FILES} <= set(files.namelist())
