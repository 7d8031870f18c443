"""The record of an import, from which an interrupted one continues: a line for each step, in record.jsonl."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from app.cli.errors import UsageError

Json = dict[str, Any]


class ImportRecord:
    """Facts about each id at OpenAI; a later line of the record adds to the earlier ones.

    Of a file: its provenance and `tunery_file` (its id here). Of a job: `saved` (the job as it was saved), `checked`
    (the request that was checked) and `job` (its id here).
    """

    def __init__(self, root: Path) -> None:
        """Raises UsageError while another import uses the directory: both would create the same jobs."""
        self.root = root
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
            temporary = root / ".record.part"  # a kill in the middle would leave a record that hides the earlier one
            temporary.write_text("".join(_line(*each) for each in self.facts.items()), encoding="utf-8")
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


def _line(openai_id: str, facts: Json) -> str:
    return json.dumps({"id": openai_id, **facts}, ensure_ascii=False) + "\n"


def complete_lines(path: Path) -> bytes:
    """The lines of a file without a last one that was interrupted, which is removed from the file."""
    content = path.read_bytes() if path.exists() else b""
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        os.truncate(path, len(complete))
    return complete
