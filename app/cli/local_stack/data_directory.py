"""What lies where in a data directory. Nothing of Tunery's lies anywhere else.

DATA_DIR/         0700; 0711 where PostgreSQL runs as another account, which must pass through
  up.lock         held by the `tunery up` that runs here; also the mark of a data directory
  admin-key       0600, the key that the CLI uses
  runtime.json    0600, only while it runs: addresses and process ids
  postgres/       see postgres.py
  valkey/         see valkey.py
  models/         0700, the bundled base model
  storage/ work/  0700, datasets and adapters; work directories of jobs
  run/            0700, the locks of the workers' slots
  logs/           0700, one file per process and its older ones: api.log, api.log.1, ...
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.servers.unprivileged import account, reachable

PRIVATE = ("models", "storage", "work", "run", "logs")
MARK = "up.lock"
NOT_OURS_BUT_HARMLESS = frozenset({"lost+found"})  # at the root of a mounted volume


@dataclass(frozen=True)
class Layout:
    root: Path

    @property
    def lock(self) -> Path:
        return self.root / MARK

    @property
    def admin_key(self) -> Path:
        return self.root / "admin-key"

    @property
    def runtime(self) -> Path:
        return self.root / "runtime.json"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def valkey(self) -> Path:
        return self.root / "valkey"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def refuse_foreign(self) -> None:
        """Its permissions are about to be set, so a directory with somebody else's files in it is left alone."""
        if self.root.exists() and not self.root.is_dir():
            raise CannotStart(f"{self.root} is not a directory. Choose another --data-dir.")
        found = _names(self.root) - NOT_OURS_BUT_HARMLESS
        if found and MARK not in found:
            raise CannotStart(
                f"{self.root} is neither empty nor a data directory of Tunery (it holds {sorted(found)[0]!r}). "
                "Choose another --data-dir, such as a new directory inside it."
            )
        if found and self.root.stat().st_uid != os.geteuid():
            raise CannotStart(
                f"{self.root} belongs to {_owner(self.root)}, whose Tunery lives there. "
                "Start it as that user, or choose another --data-dir."
            )

    def make_root(self, passable: bool) -> None:
        """Only if it is missing: until the lock is held, another `tunery up` may live in it."""
        try:
            for directory in (*reversed(self.root.parents), self.root):
                if not directory.exists():
                    directory.mkdir(exist_ok=True)
                    directory.chmod(_mode(passable))
        except OSError as error:
            raise CannotStart(
                f"The data directory {self.root} can't be created: {error.strerror} at {error.filename}. "
                f"Choose another --data-dir, such as {default_data_dir()}."
            ) from None

    def create_directories(self, passable: bool) -> None:
        """`passable`: another account must get through to its own directory, though it sees nothing on the way."""
        self.root.chmod(_mode(passable))
        for name in PRIVATE:
            (self.root / name).mkdir(mode=0o700, exist_ok=True)

    def write_runtime(self, runtime: dict[str, Any]) -> None:
        write_secret(self.runtime, json.dumps(runtime, indent=2) + "\n")

    def read_runtime(self) -> dict[str, Any] | None:
        """What a running `tunery up` says of itself; None if none is ready here."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self.runtime.read_text(encoding="utf-8")))
        return None


def default_data_dir() -> Path:
    """For root a place that PostgreSQL's account can reach, which a home is not; for people the XDG one."""
    if os.geteuid() == 0:
        return Path("/var/lib/tunery")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tunery"


@contextlib.contextmanager
def scratch_data_dir() -> Iterator[Path]:
    """A data directory for a demo or a test: new, usable by whoever runs this, and gone afterwards."""
    lent = account()
    parent = Path(tempfile.gettempdir())
    if lent is not None and not lent.reaches(parent):  # a private TMPDIR
        parent = reachable(lent).parent
    with tempfile.TemporaryDirectory(prefix="tunery-", dir=parent, ignore_cleanup_errors=True) as directory:
        os.chmod(directory, 0o711 if lent is not None else 0o700)
        yield Path(directory) / "data"


def write_secret(path: Path, text: str) -> None:
    """Readable by us only from its first byte on, and never half there."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _mode(passable: bool) -> int:
    return 0o711 if passable else 0o700


def _owner(path: Path) -> str:
    try:
        return repr(path.owner())
    except KeyError:  # a uid without an account
        return f"uid {path.stat().st_uid}"


def _names(directory: Path) -> set[str]:
    try:
        return {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        return set()
    except PermissionError:
        raise CannotStart(f"{directory} can't be read by this user. Choose another --data-dir.") from None
