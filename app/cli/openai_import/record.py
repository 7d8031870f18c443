"""The directory of an import: what was read from OpenAI, and the record from which an interrupted import continues.

DIRECTORY/
  record.jsonl                            a line for each step: the id of a file or a job at OpenAI, and what is known
  files/<id>/<name>                       the files
  jobs/<id>.json                          the jobs
  jobs/<id>.{events,checkpoints}.jsonl    their events and checkpoints
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.cli.errors import UsageError
from app.cli.openai_import.source import OpenAISource, Refused
from app.cli.output.console import print_note, size_text

Json = dict[str, Any]


class ImportRecord:
    """Facts about each id at OpenAI; a later line of the record adds to the earlier ones.

    Of a file: its provenance, `tunery_file` (its id here) and `has_origin`. Of a job: `saved` (the job as
    it was saved), `checked` (the request that was checked) and `job` (its id here).
    """

    def __init__(self, root: Path, say: Callable[[str], None] = print_note) -> None:
        """`say` gets what OpenAI does not return. Raises UsageError while another import uses the directory: both would
        create the same jobs.
        """
        self._root, self._say = root, say
        root.mkdir(parents=True, exist_ok=True)
        self._lock = (root / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(
                f"Another import uses {root}. Wait until it has ended, or choose another --directory."
            ) from None
        record, earlier = root / "record.jsonl", root / "state.json"
        self.facts: dict[str, Json] = {}
        for line in complete_lines(record).splitlines():
            row = json.loads(line)
            self.of(row.pop("id")).update(row)
        if not self.facts and earlier.exists():  # of an earlier release
            kinds = json.loads(earlier.read_text(encoding="utf-8"))
            self.facts = kinds["files"] | kinds["jobs"]
            temporary = root / ".record.part"
            temporary.write_text("".join(_line(each, facts) for each, facts in self.facts.items()), encoding="utf-8")
            os.replace(temporary, record)
        self._out = record.open("a", encoding="utf-8")

    def close(self) -> None:
        self._out.close()
        self._lock.close()

    def of(self, openai_id: str) -> Json:
        return self.facts.setdefault(openai_id, {})

    def add(self, openai_id: str, **facts: Any) -> Json:
        """Record a step, on the disk before the next one; all facts of the id."""
        self._out.write(_line(openai_id, facts))
        self._out.flush()
        os.fsync(self._out.fileno())
        self.of(openai_id).update(facts)
        return self.of(openai_id)

    def file_path(self, file_id: str, filename: str) -> Path:
        name = Path(filename).name
        return self._root / "files" / Path(file_id).name / ("file" if name in ("", "..") else name)

    def save_file(self, source: OpenAISource, file_id: str, listed: Json | None = None) -> Json:
        """Download a file unless that has been done; its facts. Raises Refused."""
        saved = self.of(file_id)
        if "filename" in saved and self.file_path(file_id, saved["filename"]).is_file():
            return saved
        file = listed or source.file(file_id)
        path = self.file_path(file_id, file["filename"])
        print_note(f"Downloading {file_id} ({file['filename']}, {size_text(file['bytes'])})")
        provenance = {key: file[key] for key in ("filename", "bytes", "created_at", "purpose")}
        sha256 = source.download(file_id, path)
        return self.add(file_id, **provenance, sha256=sha256, path=str(path), saved_at=int(time.time()))

    def save_files(self, source: OpenAISource, files: Mapping[str, Json | None]) -> None:
        """Save files, given as {id: the listed object, if there is one}, unless OpenAI does not return them."""
        for file_id, listed in files.items():
            try:
                self.save_file(source, file_id, listed)
            except Refused as error:
                self._say(f"{file_id}: not saved, OpenAI does not return it ({error})")

    def save_job(self, source: OpenAISource, job: Json) -> None:
        """Save a job with its events, checkpoints and result files, unless it is saved as it is now."""
        path = self._root / "jobs" / f"{job['id']}.json"
        if self.of(job["id"]).get("saved") != job or not path.exists():
            path.parent.mkdir(exist_ok=True)
            saved: Json | None = job
            for kind in ("events", "checkpoints"):
                try:
                    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in source.of_job(job["id"], kind)]
                except Refused as error:
                    saved = None  # both kinds are asked for again by the next import
                    self._say(f"{job['id']}: {kind} not saved, OpenAI does not return them ({error})")
                else:
                    path.with_suffix(f".{kind}.jsonl").write_text("".join(lines), encoding="utf-8")
            path.write_text(json.dumps(job, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            self.add(job["id"], saved=saved)
        self.save_files(source, dict.fromkeys(job.get("result_files") or ()))


def _line(openai_id: str, facts: Json) -> str:
    return json.dumps({"id": openai_id, **facts}, ensure_ascii=False) + "\n"


def complete_lines(path: Path) -> bytes:
    """The lines of a file without a last one that was interrupted, which is removed from the file."""
    content = path.read_bytes() if path.exists() else b""
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        os.truncate(path, len(complete))
    return complete
