"""Uploads of tables, and of files of which a part of the rows is held out: one request stores both files, or none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta
from pathlib import PurePath

from sqlalchemy.orm import Session

from app.db.engine import Sessions
from app.db.tables import File
from app.domain.datasets.held_out import CannotSplit
from app.domain.datasets.preparation import Preparation, PreparedRows
from app.domain.datasets.tables import ColumnError, TableError
from app.domain.files import MAX_FILENAME
from app.errors import BadRequest, InvalidDataset
from app.services.datasets.check_process import CheckProcess
from app.services.files.files import StagedFile, discard_object, insert_file, inserting, new_file
from app.storage import Storage
from app.system.limited_process import ProcessEnded
from app.system.table_files import MAX_PREPARED_BYTES, MEMORY_BYTES, TOO_LARGE, prepare, read_seconds, too_slow

HELD_OUT = "-held-out.jsonl"


def ingest_prepared(
    sessions: Sessions,
    storage: Storage,
    file: File,
    preparation: Preparation,
    expires_after: timedelta | None,
    staged: StagedFile,
    max_line_bytes: int,
    check: CheckProcess,
    before_insert: Callable[[Session], None] = lambda _session: None,
    after_insert: Callable[[Session, File], None] = lambda _session, _file: None,
) -> File:
    """Store what `prepare` makes of a staged file: `file` has the rows for training, a second file those held out.

    `before_insert` and `after_insert` run in the transaction of both rows; if one of them raises, nothing is stored.
    Raises InvalidDataset with all problems of the rows, BadRequest, CheckCancelledError.
    """
    staged.close()
    stem = PurePath(file.filename).stem
    file.filename = f"{stem[: MAX_FILENAME - len(HELD_OUT)]}.jsonl"
    held_out = new_file(file.project_id, file.purpose, file.filename.removesuffix(".jsonl") + HELD_OUT)
    parts = [StagedFile(storage.staging, MAX_PREPARED_BYTES) for _ in (file, held_out)]
    try:
        prepared = _write_parts(parts, preparation, staged, max_line_bytes, check)
        counts = prepared.rows - prepared.held_out_rows, prepared.held_out_rows
        made = [(new, part, count) for new, part, count in zip((file, held_out), parts, counts, strict=True) if count]
        facts = asdict(preparation) | {"columns": preparation.columns and str(preparation.columns)} | asdict(prepared)
        if len(made) == 2:
            file.held_out_file_id, held_out.training_file_id = held_out.id, file.id
        _put([(new, part) for new, part, _ in made], storage)
        with inserting(sessions, storage, *(new.storage_key for new, *_ in made)) as session:
            before_insert(session)
            for new, part, count in made:
                new.bytes, new.sha256, new.line_count, new.preparation = part.size_bytes, part.sha256, count, facts
                insert_file(session, new, expires_after)
            after_insert(session, file)
    finally:
        for part in parts:
            part.discard()
    return file


def _put(made: list[tuple[File, StagedFile]], storage: Storage) -> None:
    """Store all objects, or none."""
    with ExitStack() as stored:
        for new, part in made:
            part.close()
            storage.put(new.storage_key, part.path)
            stored.callback(discard_object, storage, new.storage_key)
        stored.pop_all()


def _write_parts(
    parts: list[StagedFile], preparation: Preparation, staged: StagedFile, max_line_bytes: int, check: CheckProcess
) -> PreparedRows:
    seconds = read_seconds(staged.size_bytes)
    try:
        with staged.path.open("rb") as reader:
            items = check.stream(
                prepare,
                preparation,
                max_line_bytes,
                files=[reader],
                deadline_seconds=seconds,
                memory_bytes=MEMORY_BYTES,
            )
            prepared: PreparedRows = next(items)
            for is_held_out, lines in items:
                parts[is_held_out].write(lines)
    except ProcessEnded as error:
        raise BadRequest(TOO_LARGE, "file") from error
    except TimeoutError as error:
        raise BadRequest(too_slow(staged.size_bytes), "file") from error
    except CannotSplit as error:
        raise BadRequest(f"held_out_percent: {error}", "held_out_percent") from error
    except ColumnError as error:
        raise BadRequest(f"columns: {error}", "columns") from error
    except TableError as error:
        raise InvalidDataset(str(error), "file") from error
    return prepared
