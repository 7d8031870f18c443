"""Layout of the data directory. Tunery writes no files elsewhere.

DATA_DIR/         0700; 0711 if PostgreSQL runs as another account, which must pass through
  up.lock         locked by the running `tunery up`; also identifies a data directory
  admin-key       0600, the key that the CLI uses
  secret-keys     0600, the key that encrypts the credentials of delivery targets
  runtime.json    0600, while `tunery up` runs: URLs and process ids
  metrics.json    0644, while `tunery up` runs: the metrics' addresses, in the format of Prometheus's file_sd_configs
  postgres/       see servers.py
  valkey/         see servers.py
  models/         0700, the bundled base model
  storage/ work/  0700, datasets and adapters; work directories of jobs
  run/            0700, the locks of the workers' slots
  logs/           0700, one log file per process, with rotated ones: api.log, api.log.1, ...
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.local_stack.machine import CannotStart

if TYPE_CHECKING:
    from app.settings import Settings

PRIVATE_DIRECTORIES = ("models", "storage", "work", "run", "logs")
LOCK_NAME = "up.lock"
RESTORE_LOCK = ".restoring.lock"
IGNORED_NAMES = frozenset({"lost+found", RESTORE_LOCK})  # at the root of a mounted volume; of a restore


class Layout:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / LOCK_NAME
        self.admin_key = root / "admin-key"
        self.secret_keys = root / "secret-keys"
        self.runtime = root / "runtime.json"
        self.metrics_targets = root / "metrics.json"
        self.postgres = root / "postgres"
        self.valkey = root / "valkey"
        self.models = root / "models"
        self.logs = root / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def storage_settings(self, **place: Any) -> Settings:
        """The settings of storage from the environment, or at another `place`. Raises CannotStart."""
        from pydantic import ValidationError  # here, as every command imports this module

        from app.settings import Settings, invalid_settings

        try:
            return Settings(database_url="", redis_url="", data_dir=self.root, **place)
        except ValidationError as error:
            raise CannotStart(invalid_settings(error)) from None

    def check_ownership(self) -> None:
        """Raises CannotStart for a directory with other files, because `tunery up` changes its permissions."""
        if self.root.exists() and not self.root.is_dir():
            raise CannotStart(f"{self.root} is not a directory. Choose another --data-dir.")
        names = _names(self.root) - IGNORED_NAMES
        if names and LOCK_NAME not in names:
            raise CannotStart(
                f"{self.root} is neither empty nor a data directory of Tunery (it contains {sorted(names)[0]!r}). "
                "Choose another --data-dir, such as a new directory inside it."
            )
        if names and self.root.stat().st_uid != os.geteuid():
            raise CannotStart(
                f"{self.root} is the data directory of {_owner(self.root)}. "
                "Start Tunery as that user, or choose another --data-dir."
            )

    def create_root(self, is_traversable: bool) -> None:
        """Create the root if it is missing; an existing one may be in use until the lock is held."""
        try:
            for directory in (*reversed(self.root.parents), self.root):
                if not directory.exists():
                    directory.mkdir(exist_ok=True)
                    directory.chmod(root_mode(is_traversable))
        except OSError as error:
            raise CannotStart(
                f"Cannot create the data directory {self.root}: {error.strerror} at {error.filename}. "
                f"Choose another --data-dir, such as {default_data_dir()}."
            ) from None

    def create_directories(self, is_traversable: bool) -> None:
        """Create the subdirectories. `is_traversable`: PostgreSQL's account may pass through the root."""
        self.root.chmod(root_mode(is_traversable))
        for name in PRIVATE_DIRECTORIES:
            (self.root / name).mkdir(mode=0o700, exist_ok=True)

    def write_runtime(self, runtime: dict[str, Any]) -> None:
        write_secret(self.runtime, json.dumps(runtime, indent=2) + "\n")

    def write_metrics_targets(self, ports: Mapping[str, int]) -> None:
        """List the metrics of the programs for Prometheus, which may run as another account."""
        targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {"process": name}} for name, port in ports.items()]
        self.metrics_targets.write_text(json.dumps(targets, indent=2) + "\n", encoding="utf-8")
        self.metrics_targets.chmod(0o644)

    def read_runtime(self) -> dict[str, Any] | None:
        """The URLs and process ids of the running `tunery up`; None if none is ready."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self.runtime.read_text(encoding="utf-8")))
        return None


def default_data_dir() -> Path:
    """The XDG directory; for root /var/lib/tunery, because PostgreSQL's account cannot reach a home directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/tunery")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tunery"


def write_secret(path: Path, text: str) -> None:
    """Write a file with mode 0600 atomically."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def root_mode(is_traversable: bool) -> int:
    return 0o711 if is_traversable else 0o700


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
        raise CannotStart(f"This user cannot read {directory}. Choose another --data-dir.") from None
