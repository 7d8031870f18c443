"""Save what OpenAI returns: files, and each job with its events, checkpoints and result files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.cli.openai_import.source import NotReturned, OpenAISource
from app.cli.openai_import.state import ImportDirectory
from app.cli.output.console import print_line, print_note, size_text

Json = dict[str, Any]


def save_training_files(source: OpenAISource, state: ImportDirectory) -> None:
    """Save files that no job names, too: OpenAI deletes nothing, but the account may be closed."""
    for file in source.training_files():
        _save_file_if_returned(source, state, file["id"], file)


def save_job(source: OpenAISource, state: ImportDirectory, job: Mapping[str, Any]) -> None:
    """Save a job, unless it is saved as it is now."""
    name = f"jobs/{job['id']}"
    text = json.dumps(job, indent=2, ensure_ascii=False) + "\n"
    has_changed = state.read(f"{name}.json") != text
    for kind, read in {"events": source.events, "checkpoints": source.checkpoints}.items():
        if has_changed or state.read(f"{name}.{kind}.jsonl") is None:
            _save_list(state, str(job["id"]), kind, read)
    if has_changed:
        state.write(f"{name}.json", text)
    for file_id in job.get("result_files") or ():
        _save_file_if_returned(source, state, file_id)


def save_file(source: OpenAISource, state: ImportDirectory, file_id: str, listed: Json | None = None) -> Json:
    """Download a file unless that has been done; its provenance. Raises NotReturned."""
    saved = state.files.get(file_id, {})
    if saved and state.file_path(file_id, saved["filename"]).is_file():
        return saved
    file = listed or source.file(file_id)
    path = state.file_path(file_id, file["filename"])
    print_note(f"Downloading {file_id} ({file['filename']}, {size_text(file['bytes'])})")
    provenance = {key: file[key] for key in ("filename", "bytes", "created_at", "purpose")}
    provenance |= {"sha256": source.download(file_id, path), "path": str(path), "saved_at": int(time.time())}
    state.files[file_id] = saved | provenance
    state.save()
    return state.files[file_id]


def _save_file_if_returned(
    source: OpenAISource, state: ImportDirectory, file_id: str, listed: Json | None = None
) -> None:
    try:
        save_file(source, state, file_id, listed)
    except NotReturned as error:
        print_line(f"{file_id}: not saved, OpenAI does not return it ({error})")


def _save_list(state: ImportDirectory, job_id: str, kind: str, read: Callable[[str], Sequence[Json]]) -> None:
    try:
        lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in read(job_id)]
    except NotReturned as error:
        print_line(f"{job_id}: {kind} not saved, OpenAI does not return them ({error})")
    else:
        state.write(f"jobs/{job_id}.{kind}.jsonl", "".join(lines))
