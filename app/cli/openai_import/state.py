"""The directory of an import: what was read from OpenAI, and state.json, from which an interrupted import continues."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from app.cli.errors import UsageError

Json = dict[str, Any]


class ImportDirectory:
    """`files/<id>/<name>`, `jobs/<id>.json`, `jobs/<id>.{events,checkpoints}.jsonl`, and state.json."""

    def __init__(self, root: Path) -> None:
        """Raises UsageError while another import uses the directory: both would create the same jobs."""
        self.root = root
        self._path = root / "state.json"
        root.mkdir(parents=True, exist_ok=True)
        self._lock = (root / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(
                f"Another import uses {root}. Wait until it has ended, or choose another --directory."
            ) from None
        state = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self.files: dict[str, Json] = state.get("files", {})  # {id at OpenAI: provenance, and the id here}
        self.jobs: dict[str, Json] = state.get("jobs", {})  # {id at OpenAI: {checked (the request), job (here)}}

    def close(self) -> None:
        self._lock.close()

    def save(self) -> None:
        """Write state.json, completely or not at all."""
        text = json.dumps({"files": self.files, "jobs": self.jobs}, indent=2, ensure_ascii=False)
        temporary = self._path.with_suffix(".part")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, self._path)

    def read(self, name: str) -> str | None:
        path = self.root / name
        return path.read_text(encoding="utf-8") if path.exists() else None

    def write(self, name: str, text: str) -> None:
        """Write a file below the directory, completely or not at all."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)

    def file_path(self, file_id: str, filename: str) -> Path:
        name = Path(filename).name
        return self.root / "files" / Path(file_id).name / ("file" if name in ("", "..") else name)
