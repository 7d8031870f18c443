"""Targets that write into a directory: those of kind `directory`, and engines that load adapters from a directory
which they share with the sender.

    <path>/<served model>                       a symbolic link to the version that is current
    <path>/.tunery/<served model>/<version>/    the files; a version is never changed
    <path>/.tunery/<served model>/OWNER         the delivery target that writes here

The path may be shared by several servers of Tunery: the first one that delivers a name owns it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from app.domain.deliveries.targets import DirectoryDestination
from app.system.artifact_directory import ManifestMismatch, publish, read_manifest
from worker.deliveries.engine_server import Server
from worker.deliveries.engines import EngineTarget, adapters, delivered
from worker.deliveries.targets import AdapterDelivery, Delivered, DeliveryError, DeliveryRefused, address_adapter

VERSIONS = ".tunery"
OWNER = "OWNER"
OWNER_WRITE_SECONDS = 60.0
KEPT_VERSIONS = 2  # the current one, and the one before, which an engine may still be reading
VERSION_CHARACTERS = 16


class Placed(NamedTuple):
    version: str
    relative_path: str  # of the version, below the target's path


@dataclass(frozen=True)
class DirectoryTarget:
    destination: DirectoryDestination
    allowed: Sequence[str]
    can_forget = False

    def deliver(self, delivery: AdapterDelivery, adapter: Path) -> Delivered:
        base_name = self.destination.base_name or delivery.base_model
        root = allowed_path(self.destination.path, self.allowed)
        placed = place(root, delivery, adapter, base_name)
        link(root, delivery.served_model, placed)
        return Delivered({"path": str(root / delivery.served_model), "version": placed.version})

    def has(self, delivery: AdapterDelivery) -> bool:
        return (Path(self.destination.path) / delivery.served_model).exists()

    def withdraw(self, delivery: AdapterDelivery) -> None:
        """Remove it from where it was delivered; the target may have another path by now."""
        path = delivery.location.get("path")
        remove(allowed_path(str(Path(path).parent) if path else self.destination.path, self.allowed), delivery)


def allowed_path(path: str, allowed: Sequence[str]) -> Path:
    """The real path: a link may lead out of the allowed directories. Raises DeliveryRefused, DeliveryError."""
    real = Path(path).resolve()
    if not any(real.is_relative_to(Path(each).resolve()) for each in allowed):
        names = ", ".join(allowed) or "none"
        raise DeliveryRefused(
            f"{path} is not inside a directory that the operator allows (TUNERY_DELIVERY_DIRECTORIES: {names})"
        )
    if not real.is_dir():
        raise DeliveryError(f"The directory {path} does not exist on the server that delivers; create or mount it")
    return real


def place(root: Path, delivery: AdapterDelivery, adapter: Path, base_name: str) -> Placed:
    """Store the files as a version; nothing names it yet. Raises DeliveryError."""
    version = address_adapter(adapter, delivery.model, base_name)[:VERSION_CHARACTERS]
    versions = root / VERSIONS / delivery.served_model
    try:
        versions.mkdir(parents=True, exist_ok=True)
        _own(versions, delivery)
        if not (versions / version).exists():
            staged = versions / f".{version}.staged"
            shutil.rmtree(staged, ignore_errors=True)  # left by a crash
            try:
                staged.mkdir()
                for path in adapter.iterdir():
                    shutil.copy2(path, staged)
                publish(staged, versions / version)
            except OSError:  # of a full disk, which these files would keep full
                shutil.rmtree(staged, ignore_errors=True)
                raise
    except OSError as error:
        raise _not_writable(root, error) from error
    return Placed(version, f"{VERSIONS}/{delivery.served_model}/{version}")


def link(root: Path, name: str, placed: Placed) -> None:
    """Make a version the current one, and remove old ones. Raises DeliveryError."""
    path = root / name
    if os.path.lexists(path) and not path.is_symlink():
        raise DeliveryError(f"{path} exists and was not made by Tunery; remove it, or choose another served_model")
    try:
        temporary = root / f".{name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(placed.relative_path)
        os.replace(temporary, path)
        _remove_old_versions(root / VERSIONS / name, placed.version)
    except OSError as error:
        raise _not_writable(root, error) from error


def remove(root: Path, delivery: AdapterDelivery) -> None:
    """Remove the versions of an adapter, if the name is this target's. Raises DeliveryError.

    The name goes with them, and its other versions, if this adapter is the current one; another one stays.
    """
    versions, path = root / VERSIONS / delivery.served_model, root / delivery.served_model
    try:
        if not versions.exists() or (versions / OWNER).read_text() != delivery.target_id:
            return
        ours = versions_of(root, delivery)
        is_current = path.is_symlink() and path.readlink().name in ours
        if is_current:
            path.unlink()
        for version in ours:
            shutil.rmtree(versions / version)
        if is_current or {each.name for each in versions.iterdir()} == {OWNER}:
            shutil.rmtree(versions)
    except OSError as error:
        raise _not_writable(root, error) from error


def versions_of(root: Path, delivery: AdapterDelivery) -> list[str]:
    """The stored versions that are this adapter, and not another one under the same name. Raises OSError."""
    versions = root / VERSIONS / delivery.served_model
    found = [path for path in versions.iterdir() if path.is_dir()] if versions.is_dir() else []
    return [
        path.name for path in found if path.name == delivery.location.get("version") or _is_of(path, delivery.model)
    ]


def _is_of(version: Path, model: str) -> bool:
    try:
        return bool(read_manifest(version).get("fine_tuned_model") == model)
    except ManifestMismatch:
        return False


def _own(versions: Path, delivery: AdapterDelivery) -> None:
    """Raises DeliveryError for a name of another target, which may belong to another server."""
    try:
        with (versions / OWNER).open("x") as file:
            file.write(delivery.target_id)
    except FileExistsError:
        owner = (versions / OWNER).read_text()
        if not owner and time.time() - (versions / OWNER).stat().st_mtime > OWNER_WRITE_SECONDS:
            (versions / OWNER).write_text(delivery.target_id)  # the process that created it was killed
        elif not owner:
            raise DeliveryError(f"{versions / OWNER} is being written; it is tried again") from None
        elif owner != delivery.target_id:
            raise DeliveryError(
                f"{delivery.served_model} in this directory belongs to the delivery target {owner}, perhaps of another "
                "Tunery server; choose another path or served_model"
            ) from None


def _remove_old_versions(versions: Path, current: str) -> None:
    others = [path for path in versions.iterdir() if path.is_dir() and path.name != current]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_VERSIONS - 1 :]:
        shutil.rmtree(path)


def _not_writable(root: Path, error: OSError) -> DeliveryError:
    reason = error.strerror or error
    return DeliveryError(f"The directory {root} cannot be written: {reason}; make it writable, with free space")


@dataclass(frozen=True)
class SharedDirectoryTarget(EngineTarget):
    shared_path: str
    allowed: Sequence[str]

    def deliver(self, delivery: AdapterDelivery, adapter: Path) -> Delivered:
        self.refuse_incompatible(delivery)
        base = self.first_base()
        root = allowed_path(self.shared_path, self.allowed)
        placed = place(root, delivery, adapter, self.destination.base_name or base.root)
        path = self._engine_path(placed.relative_path)
        served = self.on_every_server(lambda server: self.serve(server, delivery, path))
        link(root, delivery.served_model, placed)
        return delivered({"path": path, "root": self.shared_path, "version": placed.version}, served)

    def withdraw(self, delivery: AdapterDelivery) -> None:
        """Unload and remove it where it was delivered; the target may have another path by now."""
        root = str(delivery.location.get("root", self.shared_path))
        versions = versions_of(Path(root), delivery)
        paths = {self._engine_path(f"{VERSIONS}/{delivery.served_model}/{version}") for version in versions}
        paths.add(delivery.location.get("path", ""))
        self.on_every_server(lambda server: self._forget(server, delivery, paths))
        remove(allowed_path(root, self.allowed), delivery)

    def delivered_path(self, _server: Server, delivery: AdapterDelivery) -> str:
        return str(delivery.location.get("path", ""))

    def is_ours(self, loaded: str, _path: str, delivery: AdapterDelivery) -> bool:
        return loaded.startswith(self._engine_path(f"{VERSIONS}/")) or loaded in delivery.own_paths

    def _forget(self, server: Server, delivery: AdapterDelivery, paths: Collection[str]) -> None:
        """Unload the adapter. Its served name may have another one by now, or still the one before."""
        ours = self._engine_path(f"{VERSIONS}/{delivery.served_model}/")
        for name, path in adapters(server).items():
            # An attempt that ended in its check has loaded another version, which is under the `ft:` name.
            is_loaded = name == delivery.model and path.startswith(ours)
            if is_loaded or (name in (delivery.model, delivery.served_model) and path in paths):
                self.engine.unload(server, name)

    def _engine_path(self, relative_path: str) -> str:
        return f"{self.destination.engine_path or self.shared_path}/{relative_path}"
