"""`tunery adapters`: a finished job's adapter, or one of its checkpoints, as a directory that PEFT loads."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.cli import archive
from app.cli.errors import CliError, Misused, Missing
from app.cli.options import AsJson, with_client
from app.cli.output import print_json, print_line, remark, size_text
from app.cli.progress import bytes_bar
from app.domain.artifacts import ManifestMismatch, verify

if TYPE_CHECKING:
    from app.cli.client import Client

commands = typer.Typer(no_args_is_help=True, help="Trained adapters.")


class Source(NamedTuple):
    """An archive on the server, and what it must be."""

    path: str
    size_bytes: int
    sha256: str
