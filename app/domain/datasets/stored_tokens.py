"""The stored tokens of a file: a line of JSON with everything that decides them, then blocks of TokenizedDataset.

Validation writes them, so that attempts tokenize nothing. A reader compares the line with the key of its own files and
settings; the digest of the whole is stored in the database.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import BinaryIO

from app.domain.datasets.render import Renderer
from app.domain.datasets.report import DatasetReport, read_kept
from app.domain.datasets.tokenized import TokenizedDataset
from app.domain.datasets.warnings import RowIndex
from app.domain.jobs.spec import DataParameters
from app.domain.methods import MethodName

FORMAT = 1
BLOCK_TOKENS = 1 << 18  # about 1.3 MB
MAX_KEY_BYTES = 1 << 20  # the arguments of a chat template have up to 64,000 bytes
PROGRAMS = ("tunery", "tokenizers", "jinja2")  # their releases decide the tokens, too


def key_of(renderer: Renderer, file_sha256: str, parameters: DataParameters) -> bytes:
    """The line that names everything on which the tokens of a file depend."""
    values = {
        "format": [FORMAT, sys.byteorder],
        "file_sha256": file_sha256,
        "renderer": renderer.identity,
        "parameters": parameters.model_dump(mode="json"),
        "programs": {name: _version(name) for name in PROGRAMS},
    }
    return json.dumps(values, sort_keys=True).encode() + b"\n"


def read_and_store(
    renderer: Renderer,
    parameters: DataParameters,
    max_line_bytes: int,
    training_rows: RowIndex | None,
    file_sha256: str,
    file: BinaryIO,
) -> Iterator[bytes | tuple[DatasetReport, RowIndex]]:
    """Yield the content of the stored tokens in pieces, and last the report and the rows of the file.

    Of a validation file the rows that `training_rows` has too are reported.
    """
    report, rows = DatasetReport(), RowIndex()
    yield key_of(renderer, file_sha256, parameters)
    block = TokenizedDataset()
    for line, kept in read_kept(renderer, parameters, max_line_bytes, file, report, rows, training_rows):
        block.add(line, kept)
        if block.tokens >= BLOCK_TOKENS:
            yield block.block()
            block = TokenizedDataset()
    yield block.block()
    yield report, rows


def read_tokens(file: BinaryIO, key: bytes, method: MethodName) -> TokenizedDataset | None:
    """The stored tokens; None if their key differs, or their lengths contradict each other."""
    if file.readline(MAX_KEY_BYTES) != key:
        return None
    dataset = TokenizedDataset.of_method(method)
    try:
        while dataset.add_block(file):
            pass
    except ValueError:
        return None
    return dataset


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # of a checkout that is not installed
        return ""
